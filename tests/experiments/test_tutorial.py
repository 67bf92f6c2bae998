"""The tutorial notebook is committed without outputs and runs from top to bottom."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATH = ROOT / "experiments" / "tutorial.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_committed_without_outputs():
    assert NOTEBOOK["nbformat"] == 4
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert all(not cell["outputs"] for cell in CODE)
    assert all(cell["execution_count"] is None for cell in CODE)


def test_its_cells_are_short():
    for cell in CODE:
        lines = [line for line in cell["source"] if line.strip()]
        assert len(lines) <= 40
        assert all(len(line.rstrip("\n")) <= 88 for line in lines), cell["id"]


def test_its_sections_are_in_the_order_of_the_chapter():
    texts = ["".join(c["source"]) for c in NOTEBOOK["cells"]]
    titles = re.findall(r"^## (\d+)\. (.*)$", "\n".join(texts), flags=re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, 12))
    assert titles[0][1] == "The loop by hand"
    assert titles[-1][1] == "A sweep"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter
def test_the_notebook_runs_and_shows_its_pictures(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="it comes with the extra test")
    nbformat = pytest.importorskip("nbformat", reason="nbclient installs it")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert all(o.get("name") != "stderr" for o in outputs), printed
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 8
    accuracy = re.search(r"'accuracy': ([0-9.]+)", printed)
    assert accuracy
    assert float(accuracy[1]) > 0.93
    assert "False" not in printed  # gradients by hand equal those of jax
