"""Checkpoints of a run: written in the background, the newest and best kept."""

import functools
import json
import threading
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_trees import assert_same, damage, names, write

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.step_folders as step_folders
from fngrad.checkpoint import Checkpoints, rebuild, restore, save


def test_a_state_and_a_history_of_unknown_lengths_are_restored(tmp_path):
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


def test_what_was_saved_is_written_while_steps_update_it_in_place(tmp_path):
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


def test_the_newest_and_the_best_are_kept(tmp_path):
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


def test_what_was_just_written_is_kept_even_behind_later_steps(tmp_path):
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


def with_other_bytes_in_the_newest(folder):
    """Write steps 1 to 3 and damage the last without changing a file's size."""
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2, 3):
        write(checkpoints, step)
    path = folder / "00000003" / "arrays" / "_METADATA"
    path.write_bytes(path.read_bytes().swapcase())
    return checkpoints


def test_a_flipped_bit_that_sizes_do_not_show_does_not_count_either(tmp_path):
    checkpoints = with_other_bytes_in_the_newest(tmp_path)
    with pytest.warns(UserWarning, match="got other bytes in .*_METADATA"):
        assert checkpoints.newest().step == 2
    write(checkpoints, 3)
    assert names(tmp_path) == ["00000002", "00000003-1"]
    assert checkpoints.newest().step == 3


def test_a_name_that_was_damaged_can_be_used_again(tmp_path):
    checkpoints = with_other_bytes_in_the_newest(tmp_path)
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.newest().step == 2
    write(checkpoints, 4)
    assert names(tmp_path) == ["00000002", "00000004"]
    write(checkpoints, 3)
    assert names(tmp_path) == ["00000003", "00000004"]
    assert checkpoints.at(3).step == 3


def test_a_folder_of_damaged_steps_has_no_newest_and_best_needs_a_metric(tmp_path):
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


def test_readers_ignore_what_killed_writers_left_and_writers_remove_it(tmp_path):
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


def test_readers_ignore_a_half_deleted_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1)
    monkeypatch.setattr(step_folders, "remove", lambda path: None)
    write(checkpoints, 2)
    assert names(tmp_path) == [".00000001.deleted", "00000002"]
    assert checkpoints.steps() == [2]


def test_a_step_that_is_deleted_while_it_is_read_is_not_damage(tmp_path, monkeypatch):
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


def test_reading_works_while_another_thread_writes_and_deletes(tmp_path):
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


def test_the_manifest_names_the_metric_of_the_best_step(tmp_path):
    with Checkpoints(tmp_path, best=("accuracy", "max")) as checkpoints:
        checkpoints.save(0, {"state": jnp.ones(1)})
    content = json.loads((tmp_path / "00000000" / "manifest.json").read_text())
    assert content["content"]["best"] == ["accuracy", "max"]


@pytest.mark.parametrize("committed", [False, True])
def test_a_step_that_was_read_can_be_rebuilt_again_after_donation(committed, tmp_path):
    original = {"w": jnp.arange(100_000.0), "n": jnp.arange(1003).astype(jnp.int8)}
    like = jax.device_put(original, jax.devices()[0]) if committed else original
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"state": original})
    saved = checkpoints.newest()
    double = jax.jit(lambda a: jax.tree.map(lambda x: x + x, a), donate_argnums=0)
    for _ in range(2):
        state = rebuild(saved, like)
        assert_same(state, original)
        jax.block_until_ready(double(state))


def test_a_relative_folder_does_not_follow_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Checkpoints("runs/checkpoints") as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
        monkeypatch.chdir(tmp_path / "elsewhere")
        checkpoints.save(2, {"w": jnp.zeros(2)})
    assert Checkpoints(tmp_path / "runs/checkpoints").steps() == [1, 2]
    save("more", {"w": jnp.ones(2)}, step=3)
    assert restore("more", {"w": jnp.zeros(2)})["w"].tolist() == [1, 1]
