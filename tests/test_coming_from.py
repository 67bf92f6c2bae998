"""The code of COMING_FROM.md runs: each block of fngrad by itself."""

import operator
import pathlib
import re

import pytest

import fngrad as fg

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEFINITIONS, *SECTIONS = re.split(
    r"^## ", (ROOT / "COMING_FROM.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)
TITLES = [section.partition("\n")[0] for section in SECTIONS]


def code(text: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return block


@pytest.fixture(scope="module")
def definitions() -> dict:
    names: dict = {}
    exec(compile(code(DEFINITIONS), "COMING_FROM.md", "exec"), names)
    return names


def test_it_has_twenty_numbered_sections():
    assert [int(title.partition(".")[0]) for title in TITLES] == list(range(1, 21))


@pytest.mark.parametrize("section", SECTIONS, ids=TITLES)
def test_every_section_names_what_the_three_others_do(section):
    table = re.findall(r"^\|(.*)\|$", section, flags=re.MULTILINE)
    header, cells = table[0], table[2]
    assert header.split("|") == [" optax with flax ", " torch ", " Keras "]
    assert len(cells.split("|")) == 3
    assert all(cell.strip() for cell in cells.split("|"))


def test_every_name_of_the_tables_exists():
    rows = re.findall(r"^\| .* \| (.*) \|$", DEFINITIONS, flags=re.MULTILINE)
    names = {n for row in rows for n in re.findall(r"fg\.([\w.]*\w)", row)}
    assert len(names) > 50
    for name in names:
        assert operator.attrgetter(name)(fg) is not None


@pytest.mark.parametrize("section", SECTIONS, ids=TITLES)
def test_the_code_of_every_section_runs(section, definitions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some leave run folders
    exec(compile(code(section), "COMING_FROM.md", "exec"), dict(definitions))
