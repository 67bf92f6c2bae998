"""The notebooks for Colab and Kaggle run on a CPU, as they are."""

import importlib.metadata
import importlib.util
import re
import subprocess
import types

import notebooks
import pytest

NAMES = ["colab_tpu.ipynb", "kaggle_tpu.ipynb"]


def source_of(name):
    cells = notebooks.code_cells(notebooks.read(name))
    return ["".join(cell["source"]) for cell in cells]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_committed_without_outputs(name):
    notebooks.check_form(notebooks.read(name))


@pytest.fixture
def image(tmp_path, monkeypatch):
    """Pretend to be an image without fngrad, in which pip moves what a test says."""
    moved, commands = {}, []

    def distributions():
        found = {"jax": "0.7.2", "jaxlib": "0.7.2", "numpy": "2.1.3", "tqdm": "4"}
        found |= moved if commands else {}
        return [types.SimpleNamespace(name=n, version=v) for n, v in found.items()]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    monkeypatch.setattr(subprocess, "run", lambda what, check: commands.append(what))
    return types.SimpleNamespace(moved=moved, commands=commands, folder=tmp_path)


def install(name, checkout):
    """Run the first cell, with another folder of the checkout."""
    code, count = re.subn(
        'CHECKOUT = ".*"', f"CHECKOUT = {str(checkout)!r}", source_of(name)[0]
    )
    assert count == 1
    exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize("name", NAMES)
def test_the_installation_is_held_to_the_versions_of_the_image(name, image, capsys):
    install(name, image.folder)
    (command,) = image.commands
    assert command[-3:] == [
        "--constraint",
        "stays.txt",
        f"{image.folder}[checkpoint,cli,plot]",
    ]
    pins = (image.folder / "stays.txt").read_text().split()
    assert pins == ["jax==0.7.2", "jaxlib==0.7.2", "numpy==2.1.3"]
    assert "unchanged: jax 0.7.2, jaxlib 0.7.2, numpy 2.1.3" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("origin", "count"), [(None, 1), ("fngrad/__init__.py", 0)])
def test_it_installs_unless_fngrad_is_there_and_not_its_folder_alone(
    name, image, monkeypatch, origin, count
):
    found = types.SimpleNamespace(origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    install(name, image.folder)
    assert len(image.commands) == count


@pytest.mark.parametrize("name", NAMES)
def test_an_installation_that_moves_jax_stops_the_notebook(name, image):
    image.moved["jax"] = "0.10.2"
    with pytest.raises(
        AssertionError, match=r"moved .*0\.7\.2.* to .*0\.10\.2.*new one"
    ):
        install(name, image.folder)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_checkout_the_way_out_is_told(name, image):
    with pytest.raises(
        AssertionError, match="need a checkout of fngrad, found none at"
    ):
        install(name, image.folder / "nowhere")
    assert image.commands == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter
@pytest.mark.parametrize("name", NAMES)
def test_they_run_and_resume(name, tmp_path, monkeypatch):
    outputs = notebooks.outputs_of(name, tmp_path, monkeypatch)
    printed = notebooks.text_of(outputs)
    notes = notebooks.text_of(outputs, "stderr")
    data = [each.get("data", {}) for each in outputs]
    assert "unchanged: jax " in printed
    assert any("Diagnosis: " in each.get("text/plain", "") for each in data)
    assert re.findall(r"(\w+) at step (\d+)", printed) == [
        ("completed", "30"),
        ("completed", "60"),
    ]
    assert "resumes at step 30 of 60" in notes
    assert "Warning" not in notes
    bits = re.search(r"([0-9.]+) bits per character", printed)
    assert bits
    assert float(bits[1]) < 5.5  # log2 of the alphabet is 6.7
    assert sum("image/png" in each for each in data) == 1
    assert (tmp_path / "fngrad_runs" / "characters" / "manifest.json").is_file()
    assert list((tmp_path / "fngrad_runs" / "compiled").glob("*-cache"))
