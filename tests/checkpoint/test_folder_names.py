"""Folders of any name: a checkpoint is read back from there, or refused at once."""

import os
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import ARRAYS, metric_fn, quiet_fit
from resuming import assert_same_run
from saved_trees import fail, names
from sweep_problems import arrays_of, light, quiet_sweep

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.manifest as manifest
from fngrad.checkpoint import CheckpointError, latest_step, restore, save
from fngrad.logging import read_jsonl

NAMES = {
    "brackets": "r=[1,2]",
    "open bracket": "a[",
    "close bracket": "a]",
    "negated class": "[!a]",
    "star": "a*b",
    "two stars": "**",
    "question mark": "what?",
    "braces": "{a,b}",
    "backslash": "a\\b",
    "home": "~",
    "other home": "~root",
    "variable": "$HOME",
    "percent": "a%20b%s",
    "hash": "a#b",
    "spaces": " a b ",
    "quotes": "a'b\"c",
    "letters": "übung",
    "decomposed letters": "u\u0308bung",
    "other scripts": "訓練",
    "emoji": "😀",
    "colon": "gs:",
    "address": "gs://bucket/a",
    "newline": "a\nb",
    "control": "a\x01\x7f",
    "not UTF-8": "\udc80",
    "dash": "-rf",
    "dot": "..a",
    "200 characters": "x" * 200,
    "255 characters": "x" * 255,
    "a parent": "a*/[b]/c",
}
STATE = {"w": jnp.arange(3.0), "b": np.ones((2, 2), np.int8), "none": jnp.zeros(0)}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_checkpoint_is_read_back_from_a_folder_of_any_name(name, tmp_path):
    folder = tmp_path / name
    for step in (1, 2):
        save(folder, {**STATE, "w": STATE["w"] + step}, step=step)
    assert names(folder) == ["00000001", "00000002"]
    np.testing.assert_array_equal(restore(folder, STATE)["w"], np.arange(3.0) + 2)
    np.testing.assert_array_equal(restore(folder, STATE, step=1)["b"], np.ones((2, 2)))
    assert [p.parts[0] for p in _below(tmp_path)] == [Path(name).parts[0]]


def _below(folder):
    return [path.relative_to(folder) for path in folder.iterdir()]


@pytest.mark.parametrize("name", ["r=[1,2]", "a\\b", "**", "gs:", "ü\n😀", "\udc80"])
def test_a_run_resumes_in_a_folder_of_any_name(name, tmp_path, monkeypatch):
    watched = {"metric_fn": metric_fn, "eval_data": ARRAYS, "eval_every": 2}
    monkeypatch.chdir(tmp_path)
    options = {"run_dir": name, "save_every": 2, "log_every": 1, **watched}
    quiet_fit(num_steps=4, **options)
    result = quiet_fit(num_steps=8, **options)
    assert_same_run(result, quiet_fit(num_steps=8, **watched))
    folder = tmp_path / name
    assert latest_step(folder / "checkpoints") == 8
    assert [r["step"] for r in read_jsonl(folder / "metrics.jsonl")] == [*range(1, 9)]
    assert (folder / "curves.png").exists()


@pytest.mark.parametrize("name", ["r=[1,2]", "a\\b", "*", "gs:", "\udc80"])
def test_a_sweep_resumes_in_a_folder_of_any_name(name, tmp_path):
    options = {"fn": light, "folder": tmp_path / name}
    first = quiet_sweep(**options)
    lanes = sorted((tmp_path / name / "lanes").iterdir())
    again = quiet_sweep(**options)
    for a, b in zip(arrays_of(first), arrays_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert lanes
    assert lanes == sorted((tmp_path / name / "lanes").iterdir())


def test_a_folder_that_cannot_be_read_back_is_refused_before_the_first_step(
    tmp_path, monkeypatch
):
    steps = []
    monkeypatch.setattr(array_files, "read", fail(OSError("as on another system")))
    monkeypatch.setattr(os, "symlink", fail(OSError("no links here")))
    with pytest.raises(CheckpointError, match=r"need a folder .*always works"):
        quiet_fit(
            num_steps=4,
            checkpoint_dir=tmp_path / "[a]",
            callbacks=[lambda step, *_: steps.append(step)],
        )
    assert steps == []
    assert [p.name for p in (tmp_path / "[a]").iterdir()] == [".lock"]
    with pytest.raises(CheckpointError, match="the last good checkpoint is none"):
        save(tmp_path / "[a]", STATE, step=0)
    assert latest_step(tmp_path / "[a]") is None


def test_a_temporary_folder_without_a_plain_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "[tmp]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "[tmp]"))
    with pytest.raises(CheckpointError, match="TMPDIR"):
        save(tmp_path / "[a]", STATE, step=0)
    save(tmp_path / "a", STATE, step=0)


def _forget_a_part(folder, arrays):
    _WRITE(folder, dict(list(arrays.items())[1:]))


def _change_a_part(folder, arrays):
    _WRITE(folder, {name: array ^ 1 for name, array in arrays.items()})


def _write_nothing(folder, arrays):
    folder.mkdir()


_WRITE = array_files.write


@pytest.mark.parametrize(
    "writes", [_forget_a_part, _change_a_part, _write_nothing], ids=lambda f: f.__name__
)
def test_a_step_that_cannot_be_read_never_appears(writes, tmp_path, monkeypatch):
    save(tmp_path, STATE, step=1)
    monkeypatch.setattr(array_files, "write", writes)
    with pytest.raises(CheckpointError, match="the last good checkpoint is step 1"):
        save(tmp_path, STATE, step=2)
    assert names(tmp_path) == ["00000001"]


def test_a_step_without_all_of_its_files_never_appears(tmp_path, monkeypatch):
    write = manifest.write

    def write_and_lose(folder, *rest):
        write(folder, *rest)
        (folder / "arrays" / "_METADATA").unlink()

    monkeypatch.setattr(manifest, "write", write_and_lose)
    with pytest.raises(CheckpointError, match="_METADATA missing"):
        save(tmp_path, STATE, step=2)
    assert names(tmp_path) == []


def test_arrays_are_read_back_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "_GROUP", 8)
    sizes = (3, 4, 5, 9, 1, 1)
    arrays = {f"{i:06d}": np.arange(n, dtype=np.uint8) for i, n in enumerate(sizes)}
    groups = [[int(name) for name in g] for g in array_files._groups(arrays)]
    assert groups == [[0, 1], [2], [3], [4, 5]]
    array_files.write(tmp_path / "a", arrays)
    array_files.check(tmp_path / "a", arrays)
    with pytest.raises(ValueError, match="'000003' changed"):
        array_files.check(tmp_path / "a", arrays | {"000003": np.ones(9, np.uint8)})
