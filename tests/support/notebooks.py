"""Notebooks as users run them: read, and executed in a kernel of their own."""

import json
import pathlib
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def read(name: str) -> dict[str, Any]:
    """Return the notebook of `experiments` of this name."""
    text = (ROOT / "experiments" / name).read_text(encoding="utf-8")
    return json.loads(text)


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cells that hold code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def check_form(notebook: dict[str, Any]) -> None:
    """Require a notebook without outputs, with short cells and lines."""
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in code_cells(notebook):
        assert not cell["outputs"]
        assert cell["execution_count"] is None
        lines = [line for line in cell["source"] if line.strip()]
        assert len(lines) <= 40
        assert all(len(line.rstrip("\n")) <= 88 for line in lines), cell["id"]


def outputs_of(
    name: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """Run a notebook of `experiments` in a folder; return the outputs of its cells."""
    nbclient = pytest.importorskip("nbclient", reason="it comes with the extra test")
    nbformat = pytest.importorskip("nbformat", reason="nbclient installs it")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(folder))
    notebook = nbformat.read(ROOT / "experiments" / name, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return [out for cell in notebook.cells for out in cell.get("outputs", ())]


def text_of(outputs: list[Any], stream: str = "stdout") -> str:
    """Return what cells printed to a stream."""
    streams = [each for each in outputs if each.output_type == "stream"]
    return "".join(each.text for each in streams if each.name == stream)
