"""The tutorial notebook is committed without outputs and runs from top to bottom."""

import re

import notebooks
import pytest

NOTEBOOK = notebooks.read("tutorial.ipynb")


def test_the_notebook_is_committed_without_outputs():
    notebooks.check_form(NOTEBOOK)


def test_its_sections_are_in_the_order_of_the_chapter():
    texts = ["".join(c["source"]) for c in NOTEBOOK["cells"]]
    titles = re.findall(r"^## (\d+)\. (.*)$", "\n".join(texts), flags=re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, 12))
    assert titles[0][1] == "The loop by hand"
    assert titles[-1][1] == "A sweep"


@pytest.mark.slow
@pytest.mark.any_flags
@pytest.mark.filterwarnings("default")  # of Jupyter
def test_the_notebook_runs_and_shows_its_pictures(tmp_path, monkeypatch):
    outputs = notebooks.outputs_of("tutorial.ipynb", tmp_path, monkeypatch)
    printed = notebooks.text_of(outputs)
    assert all(o.get("name") != "stderr" for o in outputs), printed
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 8
    accuracy = re.search(r"'accuracy': ([0-9.]+)", printed)
    assert accuracy
    assert float(accuracy[1]) > 0.93
    assert "False" not in printed  # gradients by hand equal those of jax
