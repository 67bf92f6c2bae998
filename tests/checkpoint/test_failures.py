"""Errors while writing are reported, and the last good step stays."""

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import run
from saved_trees import fail, names, write

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.step_folders as step_folders
from fngrad.checkpoint import CheckpointError, Checkpoints, restore, save
from fngrad.files.locks import Lock


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (step_folders, "hidden"),
        (array_files, "write"),
        (manifest, "write"),
        (step_folders, "commit"),
        (os, "rename"),
        (os, "fsync"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_full_disk_is_explained_and_the_last_step_stays(
    module, function, tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail(full))
        checkpoints.save(2, {"state": jnp.ones(3)})
        with pytest.raises(CheckpointError) as caught:
            checkpoints.wait()
    for part in (
        "the checkpoint of step 2",
        str(tmp_path),
        "bytes are free",
        "No space left on device",
        "the last good checkpoint is step 1",
    ):
        assert part in str(caught.value)
    assert names(tmp_path) == ["00000001"]
    checkpoints.wait()
    write(checkpoints, 3)
    assert checkpoints.newest().step == 3


def test_an_error_inside_orbax_leaves_no_files_and_is_reported(tmp_path, monkeypatch):
    import orbax.checkpoint

    def half(self: Any, path: Any, **_: Any) -> None:
        (Path(path) / "half").write_text("x")
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(orbax.checkpoint.PyTreeCheckpointHandler, "save", half)
    with pytest.raises(CheckpointError, match=r"EXHAUSTED.* checkpoint is none"):
        save(tmp_path, jnp.ones(3), step=0)
    assert names(tmp_path) == []


def test_a_failed_write_is_raised_once_by_the_next_call(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(array_files, "write", fail(OSError(28, "full")))
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(0, {"state": jnp.ones(1)})
        with pytest.raises(CheckpointError, match="step 0"):
            checkpoints.save(1, {"state": jnp.ones(1)})
        checkpoints.save(2, {"state": jnp.ones(1)})
        with pytest.raises(CheckpointError, match="step 2"):
            checkpoints.close()
    checkpoints.close()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"state": jnp.ones(1)})
    assert names(tmp_path) == ["00000003"]


def test_leaving_the_context_by_an_error_waits_and_raises_it(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "write", fail(OSError(28, "full")))
    checkpoints = Checkpoints(tmp_path)

    def leave() -> None:
        with checkpoints:
            checkpoints.save(0, {"state": jnp.ones(1)})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert checkpoints.newest() is None
    with pytest.raises(CheckpointError, match="full"):
        checkpoints.close()


def test_an_old_step_that_cannot_be_deleted_is_an_error_after_the_write(
    tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr(step_folders, "delete", fail(PermissionError(13, "denied")))
        checkpoints.save(2, {"state": jnp.int32(2)})
        with pytest.raises(CheckpointError, match=r"delete old steps.*the new one is"):
            checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_a_second_writer_of_a_folder_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with Lock(tmp_path, name=".writing"):
        checkpoints.save(0, {"state": jnp.ones(1)})
        with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
            checkpoints.wait()


EXIT = """
import sys
import jax.numpy as jnp
from fngrad.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"state": jnp.arange(1000.0)})
if len(sys.argv) > 2:
    raise RuntimeError("on purpose")
"""


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_the_program_waits_for_a_write(fails, tmp_path):
    strictly = f"import warnings; warnings.simplefilter('error')\n{EXIT}"
    done = run(strictly, tmp_path, *["fail"] * fails)
    assert done.returncode == int(fails), done.stderr
    assert ("on purpose" in done.stderr) == fails
    assert "checkpoint was not" not in done.stderr
    np.testing.assert_array_equal(
        restore(tmp_path, jax.ShapeDtypeStruct((1000,), jnp.float32)), np.arange(1000.0)
    )


def test_a_write_that_fails_at_the_end_of_the_program_warns(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(EXIT, tmp_path / "file" / "folder")
    assert "a checkpoint was not written: need to write" in done.stderr


def test_all_of_a_step_is_on_the_disk_before_it_appears(tmp_path, monkeypatch):
    synchronised: list[int] = []
    before: list[set[int]] = []
    fsync, rename = os.fsync, os.rename

    def note(file: int) -> None:
        synchronised.append(os.fstat(file).st_ino)
        fsync(file)

    def appear(old: Any, new: Any) -> None:
        before.append(set(synchronised))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", appear)
    step = save(tmp_path, jnp.ones(3), step=0)
    everything = {path.stat().st_ino for path in (step, *step.rglob("*"))}
    assert everything <= before[-1]
    assert tmp_path.stat().st_ino == synchronised[-1]


FORGOTTEN = """
import gc, sys
import jax.numpy as jnp
from fngrad.checkpoint import Checkpoints

def main():
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, {"state": jnp.ones(3)})
    return checkpoints._writing

assert main().exception()
gc.collect()
"""


def test_a_write_that_failed_warns_when_its_checkpoints_were_dropped(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(FORGOTTEN, tmp_path / "file" / "folder")
    assert "a checkpoint was not written: need to write" in done.stderr


def test_a_thread_that_cannot_start_is_an_error_and_the_next_one_can(
    tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail(RuntimeError("no new thread")))
        with pytest.raises(CheckpointError, match="step 1, got no new thread"):
            checkpoints.save(1, {"state": jnp.ones(1)})
    write(checkpoints, 2)
    assert checkpoints.steps() == [2]


def test_a_folder_that_cannot_be_listed_is_explained(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail(PermissionError(13, "denied")))
        checkpoints.save(2, {"state": jnp.ones(1)})
        with pytest.raises(CheckpointError, match=r"step 2 .* checkpoint is unknown"):
            checkpoints.wait()
    assert checkpoints.newest().step == 1


SMALL_DISK = """
import subprocess, sys
import jax.numpy as jnp
from fngrad.checkpoint import CheckpointError, Checkpoints
folder = sys.argv[1]
checkpoints = Checkpoints(folder)
checkpoints.save(1, {"state": jnp.ones(1000)})
checkpoints.wait()
def attempt(step, size):
    try:
        checkpoints.save(step, {"state": jnp.ones(size)})
        checkpoints.wait()
    except CheckpointError as error:
        print(error)
attempt(2, 1_000_000)
attempt(3, 1000)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
attempt(4, 1000)
print(checkpoints.newest().step)
"""


@pytest.mark.slow
def test_a_file_system_that_is_full_or_read_only_keeps_the_last_step(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(["unshare", "-m", *mount], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    script = f'{shlex.join(mount)} && exec "$@"'
    inside = [sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    command = ["unshare", "-m", "sh", "-c", script, "sh", *inside]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done
    assert "step 2" in lines[0]
    assert "o space left on device" in lines[0] or "EXHAUSTED" in lines[0]
    assert "bytes are free" in lines[0]
    assert "the last good checkpoint is step 1" in lines[0]
    assert "Read-only file system" in lines[1]
    assert "the last good checkpoint is step 3" in lines[1]
    assert lines[2] == "3"
