"""The code of RECIPES.md runs: each block by itself, at most fifteen lines."""

import pathlib
import re

import pytest

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "RECIPES.md"
DEFINITIONS, *SECTIONS = re.split(
    r"^## ", RECIPES.read_text(encoding="utf-8"), flags=re.MULTILINE
)
TITLES = [section.partition("\n")[0] for section in SECTIONS]


def code(text: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return block


@pytest.fixture(scope="module")
def definitions() -> dict:
    names: dict = {}
    exec(compile(code(DEFINITIONS), "RECIPES.md", "exec"), names)
    return names


@pytest.mark.parametrize("section", SECTIONS, ids=TITLES)
def test_every_recipe_has_at_most_fifteen_lines(section):
    lines = [line for line in code(section).splitlines() if line.strip()]
    assert len(lines) <= 15


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=TITLES)
def test_every_recipe_runs(section, definitions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some leave files
    exec(compile(code(section), "RECIPES.md", "exec"), dict(definitions))
