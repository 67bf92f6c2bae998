"""The README is true: its Python runs, its links lead somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


README = read("README.md")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(capsys, tmp_path, monkeypatch):
    assert len(BLOCKS) == 8
    monkeypatch.chdir(tmp_path)  # it leaves a run folder
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    accuracy = float(re.search(r"'accuracy': ([0-9.]+)", shown).group(1))
    assert accuracy > 0.93


def test_nothing_is_left_to_fill_in():
    assert "PLACEHOLDER" not in README


def test_the_example_has_about_twenty_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 20


def test_it_is_read_in_five_minutes():
    assert len(README.split()) < 3200, "longer tables stand where they are kept true"


LINKS = [
    (page, link)
    for page in (
        "README.md",
        "COMING_FROM.md",
        "RECIPES.md",
        "tests/README.md",
        "experiments/benchmarks/README.md",
    )
    for link in sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", read(page))))
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_inside_the_repository_lead_somewhere(page, link):
    assert ((ROOT / page).parent / link).exists()


def test_the_rows_of_benchmarks_here_are_those_of_the_full_table():
    table = README[README.index("## Benchmarks") : README.index("## Development")]
    rows = [line for line in table.splitlines() if line.startswith("| `")][1:]
    full = read("experiments/benchmarks/README.md").splitlines()
    assert len(rows) >= 8
    assert set(rows) <= set(full)


def test_every_benchmark_is_in_the_table():
    folder = ROOT / "experiments" / "benchmarks"
    table = read("experiments/benchmarks/README.md")
    for module in folder.glob("*.py"):
        if "\nCommand:" in module.read_text(encoding="utf-8"):
            assert f"| `{module.stem}` |" in table, module.stem


def test_the_map_names_every_module():
    import fngrad

    package = pathlib.Path(fngrad.__file__).parent
    top = {p.stem for p in package.iterdir() if p.suffix == ".py" or p.is_dir()}
    for name in sorted(top - {"__init__", "__pycache__"}):
        assert re.search(rf"`{name}[`/]", README), name


def test_the_table_names_every_optimizer():
    from fngrad.optimizers import REGISTRY

    for name in REGISTRY:
        assert f"`fg.{name}" in README, name


def test_the_docstring_of_every_optimizer_has_or_refers_to_its_paper():
    import fngrad as fg

    for name, optimizer in fg.REGISTRY.items():
        refers = re.findall(r"`(\w+)`", optimizer.__doc__ or "")
        sources = [optimizer, *(getattr(fg, other, None) for other in refers)]
        assert any("http" in (source.__doc__ or "") for source in sources), name
