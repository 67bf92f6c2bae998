"""Checkpoints of a run: in the background, a few kept, nothing lost at the end."""

import functools
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.folders as folders
import fngrad.checkpoint.manifest as manifest
from fngrad.checkpoint import CheckpointError, Checkpoints, rebuild, restore, save
from fngrad.locks import Lock


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".writing")


def write(checkpoints: Checkpoints, step: int, loss: float | None = None) -> None:
    metrics = None if loss is None else {"val/loss": loss}
    checkpoints.save(step, {"state": jnp.int32(step)}, metrics=metrics)
    checkpoints.wait()


def damage(folder: Path, name: str) -> None:
    path = folder / name / "arrays" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])


def test_a_state_and_a_history_of_unknown_lengths_come_back(tmp_path):
    history = {"values": {"val/loss": np.array([0.5, 0.25]), "": np.arange(0)}}
    with Checkpoints(tmp_path) as checkpoints:
        a = {"state": {"w": jnp.arange(3.0)}, "history": history}
        checkpoints.save(7, a, metrics={"val/loss": np.inf}, notes={"loop": "scan"})
    saved = Checkpoints(tmp_path).newest()
    assert saved is not None
    assert (saved.step, saved.notes) == (7, {"loop": "scan"})
    assert saved.metrics == {"val/loss": np.inf}
    np.testing.assert_array_equal(rebuild(saved, {"w": jnp.zeros(3)})["w"], [0, 1, 2])
    values = saved.under("history/values")
    assert sorted(values) == ["", "val/loss"]
    np.testing.assert_array_equal(values["val/loss"], [0.5, 0.25])
    assert restore(tmp_path, {"w": jnp.zeros(3)})["w"][2] == 2


def test_what_is_written_is_what_was_there_and_steps_go_on_in_place(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any) -> Any:
        return jax.tree.map(lambda x: x * 1.5 + 1, state)

    state = {"big": jnp.arange(300_000.0), "small": jnp.ones(()), "n": np.zeros(4)}
    host = state.pop("n")
    expected = []
    with Checkpoints(tmp_path, keep=20) as checkpoints:
        for number in range(20):
            expected.append({name: np.array(x) for name, x in state.items()})
            host[:] = number
            checkpoints.save(number, {"state": state, "n": host})
            host[:] = -1
            before = state["big"].unsafe_buffer_pointer()
            state = step(state)
            assert state["big"].unsafe_buffer_pointer() == before
    for number in range(20):
        saved = checkpoints.at(number)
        assert saved is not None
        for name, x in expected[number].items():
            assert saved.leaves[f"state/{name}"].data.tobytes() == x.tobytes()
        assert (saved.leaves["n"].data == number).all()


def test_save_returns_while_a_thread_writes_and_the_next_waits(tmp_path, monkeypatch):
    began, may_end = threading.Event(), threading.Event()
    original, threads = array_files.write, []

    def slow(folder: Path, arrays: Any) -> None:
        threads.append(threading.current_thread())
        began.set()
        may_end.wait(60)
        original(folder, arrays)

    monkeypatch.setattr(array_files, "write", slow)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, {"state": jnp.ones(3)})
    assert began.wait(60)
    assert threads[0] is not threading.main_thread()
    assert names(tmp_path) == [".00000000.writing"]
    later = threading.Thread(target=lambda: write(checkpoints, 1))
    later.start()
    later.join(0.1)
    assert later.is_alive()
    may_end.set()
    later.join()
    assert checkpoints.steps() == [0, 1]
    checkpoints.close()


def test_the_newest_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, best=("val/loss", "min"))
    for step, loss in enumerate((3.0, 1.0, 1.0, np.nan, 2.0, None)):
        write(checkpoints, step, loss)
    assert names(tmp_path) == ["00000001", "00000004", "00000005"]
    assert checkpoints.best().step == 1
    assert checkpoints.newest().step == 5
    assert checkpoints.at(4).step == 4
    assert checkpoints.at(3) is None


def test_the_best_can_be_the_largest_and_restore_knows_the_metric(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best=("accuracy", "max"))
    for step, accuracy in enumerate((0.1, 0.9, 0.5)):
        metrics = {"accuracy": accuracy}
        checkpoints.save(step, {"state": jnp.int32(step)}, metrics=metrics)
    checkpoints.close()
    assert checkpoints.best().step == 1
    assert restore(tmp_path, jnp.int32(0), step="best") == 1


def test_what_was_just_written_stays_even_behind_later_steps(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30, 15):
        write(checkpoints, step)
    assert checkpoints.steps() == [15, 20, 30]


def test_damaged_steps_are_skipped_with_a_warning_and_do_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        write(checkpoints, step)
    damage(tmp_path, "00000003")
    again = Checkpoints(tmp_path, keep=2)
    with pytest.warns(UserWarning, match=r"00000003 is damaged .* in .*_METADATA"):
        assert again.newest().step == 2
    write(again, 4)
    assert names(tmp_path) == ["00000002", "00000004"]


def test_a_flipped_bit_that_sizes_do_not_show_does_not_count_either(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        write(checkpoints, step)
    path = tmp_path / "00000003" / "arrays" / "_METADATA"
    path.write_bytes(path.read_bytes().swapcase())
    with pytest.warns(UserWarning, match="got other bytes in .*_METADATA"):
        assert checkpoints.newest().step == 2
    write(checkpoints, 3)
    assert names(tmp_path) == ["00000002", "00000003-1"]
    assert checkpoints.newest().step == 3


def test_a_name_that_was_damaged_can_be_used_again(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        write(checkpoints, step)
    path = tmp_path / "00000003" / "arrays" / "_METADATA"
    path.write_bytes(path.read_bytes().swapcase())
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.newest().step == 2
    write(checkpoints, 4)
    assert names(tmp_path) == ["00000002", "00000004"]
    write(checkpoints, 3)
    assert names(tmp_path) == ["00000003", "00000004"]
    assert checkpoints.at(3).step == 3


def test_all_damaged_is_as_none_and_best_needs_a_metric(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    write(checkpoints, 1)
    damage(tmp_path, "00000001")
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.newest() is None
    with pytest.raises(ValueError, match=r"need best=\(metric, mode\), got None"):
        checkpoints.best()


def test_arguments_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="need an int keep >= 1"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match='need best as a name and "min" or "max"'):
        Checkpoints(tmp_path, best=("loss", "least"))
    with pytest.raises(ValueError, match="need an int step >= 0"):
        Checkpoints(tmp_path).save(-1, jnp.ones(1))
    assert names(tmp_path) == []


def fail(error: Exception) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (folders, "hidden"),
        (array_files, "write"),
        (manifest, "write"),
        (folders, "commit"),
        (os, "rename"),
        (os, "fsync"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_full_disk_is_explained_and_the_last_step_stands(
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


def test_an_error_inside_orbax_leaves_nothing_and_says_there_is_no_step(
    tmp_path, monkeypatch
):
    import orbax.checkpoint

    def half(self: Any, path: Any, **_: Any) -> None:
        (Path(path) / "half").write_text("x")
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(orbax.checkpoint.PyTreeCheckpointHandler, "save", half)
    with pytest.raises(CheckpointError, match=r"EXHAUSTED.* checkpoint is none"):
        save(tmp_path, jnp.ones(3), step=0)
    assert names(tmp_path) == []


def test_a_failed_write_is_raised_by_what_comes_next_once(tmp_path, monkeypatch):
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


def test_leaving_by_an_error_waits_and_raises_that_error(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "write", fail(OSError(28, "full")))
    checkpoints = Checkpoints(tmp_path)

    def leave() -> None:
        with checkpoints:
            checkpoints.save(0, {"state": jnp.ones(1)})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert checkpoints.newest() is None


def test_an_old_step_that_cannot_be_deleted_is_an_error_after_the_write(
    tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "delete", fail(PermissionError(13, "denied")))
        checkpoints.save(2, {"state": jnp.int32(2)})
        with pytest.raises(CheckpointError, match=r"delete old steps.*the new one is"):
            checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_what_killed_writers_left_is_ignored_by_readers_and_swept_by_writers(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    leftovers = [".00000002.writing", ".00000000.deleted", ".00000001-1.writing"]
    for name in leftovers:
        (tmp_path / name / "arrays").mkdir(parents=True)
    foreign = [".git", "notes.txt", "0000000x", ".00000003.other"]
    for name in foreign:
        (tmp_path / name).mkdir()
    assert checkpoints.newest().step == 1
    assert set(leftovers) < set(names(tmp_path))
    write(checkpoints, 4)
    assert names(tmp_path) == sorted([*foreign, "00000001", "00000004"])


def test_a_half_deleted_step_is_gone_for_readers(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1)
    monkeypatch.setattr(folders, "remove", lambda path: None)
    write(checkpoints, 2)
    assert names(tmp_path) == [".00000001.deleted", "00000002"]
    assert checkpoints.steps() == [2]


def test_a_step_that_goes_while_it_is_read_is_no_damage(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1)
    original, reads = array_files.read, []

    def read(folder: Path, wanted: Any) -> Any:
        reads.append(folder.parent.name)
        if len(reads) == 1:
            write(Checkpoints(tmp_path, keep=1), 2)
        return original(folder, wanted)

    monkeypatch.setattr(array_files, "read", read)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore(tmp_path, jnp.int32(0)) == 2
    assert reads == ["00000001", "00000002"]


def test_reading_goes_on_while_another_writes_and_deletes(tmp_path):
    stop = threading.Event()
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 0)

    def keep_writing() -> None:
        step = 1
        while not stop.is_set():
            write(checkpoints, step)
            step += 1

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen: list[int] = []
    try:
        while len(set(seen)) < 5 and writer.is_alive():
            seen.append(int(restore(tmp_path, jnp.int32(0))))
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) == 5


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
    command = [sys.executable, "-W", "error", "-c", EXIT, str(tmp_path)]
    done = subprocess.run(
        command + ["fail"] * fails, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == int(fails), done.stderr
    assert ("on purpose" in done.stderr) == fails
    assert "checkpoint was not" not in done.stderr
    np.testing.assert_array_equal(
        restore(tmp_path, jax.ShapeDtypeStruct((1000,), jnp.float32)), np.arange(1000.0)
    )


def test_a_write_that_failed_at_the_end_of_the_program_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-c", EXIT, str(tmp_path / "file" / "folder")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "a checkpoint was not written: need to write" in done.stderr


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


def test_a_file_system_that_is_full_or_read_only_keeps_the_last_step(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(["unshare", "-m", *mount], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    script = f'{" ".join(mount)} && exec "$@"'
    inside = [sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    command = ["unshare", "-m", "sh", "-c", script, "sh", *inside]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done
    assert "step 2" in lines[0]
    assert "o space left on device" in lines[0] or "EXHAUSTED" in lines[0]
    assert "bytes are free" in lines[0]
    assert "the last good checkpoint is step 1" in lines[0]
    assert "Read-only file system" in lines[1]
    assert "the last good checkpoint is step 3" in lines[1]
    assert lines[2] == "3"


def test_the_manifest_of_a_step_names_the_metric_it_is_best_by(tmp_path):
    with Checkpoints(tmp_path, best=("accuracy", "max")) as checkpoints:
        checkpoints.save(0, {"state": jnp.ones(1)})
    content = json.loads((tmp_path / "00000000" / "manifest.json").read_text())
    assert content["content"]["best"] == ["accuracy", "max"]
