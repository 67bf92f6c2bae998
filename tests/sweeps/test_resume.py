"""A sweep that was killed, interrupted or damaged resumes from its chunks."""

import functools
import json
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import Forked
from sweep_problems import DATA, POINTS, assert_same_bits, light
from sweep_problems import quiet_sweep as any_sweep

import fngrad.sweeps.running.program as program
from fngrad.files.locks import Lock, LockError
from fngrad.sweeps.running.lane_outputs import LaneOutputs

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles


def quiet_sweep(fn=light, **options):
    return any_sweep(fn=fn, **options)


@functools.cache
def whole():
    """Return the sweep that nothing interrupted."""
    return quiet_sweep()


def lanes_of(folder):
    return sorted((folder / "lanes").iterdir())


def test_a_second_call_trains_nothing(tmp_path, monkeypatch):
    want = whole()  # before compilation is patched
    quiet_sweep(folder=tmp_path)
    monkeypatch.setattr(program, "compile_block", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(
        "fngrad.sweeps.running.block_width.compile_block", program.compile_block
    )
    again = quiet_sweep(folder=tmp_path)
    assert again.notes["restored"] == 15
    assert_same_bits(again, want)


def test_missing_and_damaged_chunks_are_trained_again(tmp_path):
    quiet_sweep(folder=tmp_path)
    first, second, third, _ = lanes_of(tmp_path)
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 1
    second.write_bytes(content)
    third.write_bytes(third.read_bytes()[:-7])
    first.unlink()
    with pytest.warns(UserWarning, match="is damaged: its . lanes are") as warned:
        again = quiet_sweep(folder=tmp_path, chunk=8)
    messages = [str(w.message) for w in warned]
    for file in (second, third):
        assert any(message.startswith(f"{file} is") for message in messages)
    assert again.notes["restored"] in (3, 4)  # the last chunk has 3 lanes
    assert_same_bits(again, whole())


@pytest.mark.parametrize("position", range(0, 100, 9))
def test_a_flipped_bit_never_becomes_a_result(tmp_path, position):
    from fngrad.sweeps.running.lane_outputs import LaneOutputs
    from fngrad.sweeps.running.storage import Folder

    record = LaneOutputs({"x": jax.ShapeDtypeStruct((2,), np.float32)}, 3)
    record.put(np.arange(3), [np.arange(6, dtype=np.float32).reshape(3, 2)])
    folder = Folder(tmp_path, {}, {})
    folder.save(0, 0, 3, record)
    (file,) = lanes_of(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) * position // 100] ^= 1 << (position % 8)
    file.write_bytes(content)
    restored = LaneOutputs({"x": jax.ShapeDtypeStruct((2,), np.float32)}, 3)
    with pytest.warns(UserWarning, match="is damaged"):
        folder.restore(0, restored)
    assert not restored.done.any()
    assert not file.exists()


def changed(point, key):
    return light({"learning_rate": 2 * point["learning_rate"]}, key)


def shorter(point, key):
    state, history = light(point, key)
    return state, {name: curve[..., -1:] for name, curve in history.items()}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"points": {"learning_rate": POINTS["learning_rate"] * 2}}, "points"),
        ({"keys": jax.random.split(jax.random.key(9), 3)}, "keys"),
        ({"fn": changed}, "train_fn"),
        ({"fn": shorter}, "outputs"),
        ({"args": (DATA,)}, "args"),
        ({"static": {"data": [DATA]}}, "static"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_folder_of_a_different_sweep_is_refused(tmp_path, options, name):
    (tmp_path / "lanes").mkdir()
    quiet_sweep(folder=tmp_path)
    with pytest.raises(ValueError, match=rf"need the sweep that .*{name}: .* became"):
        quiet_sweep(folder=tmp_path, **options)


def adding(number):
    """Return a training with a constant inside a nested jitted function."""
    captured = np.array([number, 1.0], np.float32)
    shifted = jax.jit(lambda x: jnp.tensordot(x, captured, 0).sum(-1))

    def fn(point, key):
        state, history = light(point, key)
        return state, {name: shifted(x) for name, x in history.items()}

    return fn


def test_a_different_constant_in_the_program_is_refused(tmp_path):
    quiet_sweep(adding(2.0), folder=tmp_path)
    with pytest.raises(ValueError, match=r"need the sweep that .*train_fn: .* became"):
        quiet_sweep(adding(3.0), folder=tmp_path)
    assert quiet_sweep(adding(2.0), folder=tmp_path).notes["restored"] == 15


def test_two_sweeps_cannot_use_one_folder(tmp_path):
    quiet_sweep(folder=tmp_path)  # releases the folder when it ends
    with (
        Lock(tmp_path),
        pytest.raises(LockError, match="folder for this sweep that nobody else wri"),
    ):
        quiet_sweep(folder=tmp_path)
    with pytest.raises(ValueError, match="need the sweep that"):
        quiet_sweep(changed, folder=tmp_path)
    # A failed call releases it too.
    assert quiet_sweep(folder=tmp_path).notes["restored"] == 15


def test_partial_files_of_a_killed_sweep_are_deleted(tmp_path):
    quiet_sweep(folder=tmp_path)
    torn = tmp_path / "lanes" / ".0-0-4-00000000.npz.123.tmp"
    torn.write_bytes(b"PK")
    assert quiet_sweep(folder=tmp_path).notes["restored"] == 15
    assert not torn.exists()


def test_a_folder_from_another_version_of_jax_is_refused(tmp_path):
    quiet_sweep(folder=tmp_path)
    file = tmp_path / "sweep.json"
    file.write_text(file.read_text().replace(jax.__version__, "0.1.2"))
    with pytest.raises(ValueError, match=r"jax: '0\.1\.2' became"):
        quiet_sweep(folder=tmp_path)


def test_a_folder_with_an_invalid_description_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match="need the description of a sweep"):
        quiet_sweep(folder=tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="need a sweep of format 1"):
        quiet_sweep(folder=tmp_path)


def test_lanes_without_a_description_are_refused(tmp_path):
    quiet_sweep(folder=tmp_path)
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(ValueError, match=r"describes the sweep of the 4 files in"):
        quiet_sweep(changed, folder=tmp_path)
    assert len(lanes_of(tmp_path)) == 4


def test_the_recorded_width_is_used_again(tmp_path):
    quiet_sweep(folder=tmp_path)
    for file in lanes_of(tmp_path)[:2]:
        file.unlink()
    with pytest.raises(
        ValueError, match=r"need mode=4 or mode='auto' .* got mode='map"
    ):
        quiet_sweep(folder=tmp_path, mode="map")
    again = quiet_sweep(folder=tmp_path, mode="auto")
    assert again.notes["modes"][0]["width"] == 4
    assert "recorded" in again.notes["modes"][0]["reason"]
    assert_same_bits(again, whole())


def test_an_interrupt_saves_the_completed_blocks(tmp_path, monkeypatch):
    made = []
    put = LaneOutputs.put

    def interrupted(self, numbers, outputs):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        put(self, numbers, outputs)

    monkeypatch.setattr(LaneOutputs, "put", interrupted)
    with pytest.raises(KeyboardInterrupt) as error:
        quiet_sweep(folder=tmp_path, chunk=12)
    (note,) = error.value.__notes__
    assert (
        note
        == f"8 of 15 lanes are kept in {tmp_path}: the same call continues from there"
    )
    monkeypatch.undo()
    again = quiet_sweep(folder=tmp_path, chunk=12)
    assert again.notes["restored"] == 8
    assert_same_bits(again, whole())


KILLED = """
import sys, time
sys.path[:0] = ["tests", "tests/support"]
import conftest
import fngrad.sweeps.running.storage as storage
from sweep_problems import light, quiet_sweep
saved, save = [], storage.Folder.save
def save_two(*arguments):
    if len(saved) == 2:
        time.sleep(3600)  # until the process is killed
    saved.append(save(*arguments))
storage.Folder.save = save_two
quiet_sweep(fn=light, folder=sys.argv[1])
"""


def test_a_killed_sweep_resumes(tmp_path):
    process = Forked(KILLED, tmp_path)
    while process.poll() is None and len(list(tmp_path.glob("lanes/*.npz"))) < 2:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = quiet_sweep(folder=tmp_path)
    assert again.notes["restored"] == 8
    assert_same_bits(again, whole())
