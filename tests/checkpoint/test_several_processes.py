"""Several processes write one checkpoint and read it: all of its bits, or a failure."""

import json
import os
import signal
import time

import numpy as np
import pytest
from launched import ends, launch

from fngrad.checkpoint import CheckpointError, latest_step, restore, save
from fngrad.checkpoint.reading import check
from fngrad.checkpoint.shards import Box, pieces, size_of, whole
from fngrad.commands.clean import superfluous

BEGIN = """
import os, sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
import fngrad as fg
import fngrad.checkpoint.shard_files as shard_files
from jax.sharding import NamedSharding, PartitionSpec as P

mine = fg.distributed.initialize(heartbeat_seconds=10)
folder = sys.argv[1]
mesh = fg.sharding.make_mesh()
random = np.random.default_rng(0)
HOST = {
    "rows": (random.normal(size=(64, 6)).astype(np.float32), P("data")),
    "columns": (random.normal(size=(6, 8)).astype(jnp.bfloat16), P(None, "data")),
    "whole": (np.array([1.5, -0.0, np.nan], np.float16), P()),
    "empty": (np.zeros((0, 3), np.int8), P()),
    "flags": (np.arange(8) % 3 == 0, P("data")),
    "keys": (np.arange(16, dtype=np.uint32).reshape(8, 2), P("data")),
    "key": (np.array([3, 4], np.uint32), P()),
}

def put(x, spec):
    where = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

def tree(times=1):
    found = {name: put(x * np.asarray(times, x.dtype), s)
             for name, (x, s) in HOST.items()}
    for name in "keys", "key":
        found[name] = jax.random.wrap_key_data(found[name])
    return found | {"here": jnp.arange(3) * times, "numpy": np.arange(2.0) * times}

def check(found):
    wanted = tree()
    for name, x in found.items():
        y = wanted[name]
        if fg.tree.is_key(x):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype and x.shape == y.shape, name
        if isinstance(x, jax.Array):
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim), name
            x, y = ([s.data for s in z.addressable_shards] for z in (x, y))
        assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes()
                   for a, b in zip(x, y, strict=True)), name
"""
ROWS = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
SAVE = """
first = fg.checkpoint.save(folder, tree(), step=1, metrics={"val/loss": 0.5})
"""


def test_a_checkpoint_of_two_processes_has_every_shard_once_and_all_of_its_bits(
    tmp_path,
):
    script = """
check(fg.checkpoint.restore(folder, tree(0)))
taken = dict(zip("abc", [put(x, P("data")) for x in np.ones((3, 8), np.float32)]))
fg.checkpoint.save(folder, taken, step=2)
step = jax.jit(lambda a: jax.tree.map(lambda x: x * 2, a), donate_argnums=0)
back = fg.checkpoint.restore(folder, taken)
step(back)
assert back["a"].is_deleted()  # it was in memory of its own
best = fg.checkpoint.restore(folder, tree(0), step="best")
check(best)
with fg.checkpoint.Checkpoints(folder, keep=1, best=("val/loss", "min")) as all_steps:
    for now in 3, 4:
        all_steps.save(now, {"state": tree()}, metrics={"val/loss": 1.0})
    all_steps.wait()
    found = all_steps.newest({"state": tree(0)})
    print(first.name, all_steps.steps(), found.step, fg.checkpoint.latest_step(folder))
    check(fg.checkpoint.rebuild(found, tree(0)))
"""
    ended = ends(launch(BEGIN + SAVE + script, 2, str(tmp_path), devices=2))
    assert all("00000001 [1, 4] 4 4" in each.output for each in ended), ended
    assert [each.status for each in ended] == [0, 0]
    content = json.loads((tmp_path / "00000001" / "manifest.json").read_text())
    content = content["content"]
    assert content["format"] == 2
    sizes = {name: entry["size"] for name, entry in content["files"].items()}
    # The second process has half of what is split, and nothing of what is whole.
    assert sizes["arrays/00001"] == (64 * 6 * 4 + 6 * 8 * 2 + 8 + 16 * 4) // 2
    assert sizes["arrays/00000"] == sizes["arrays/00001"] + 6 + 8 + 3 * 4 + 2 * 8
    assert {path.name for path in tmp_path.iterdir()} == {
        *(".writing", "00000001", "00000004")
    }
    here = restore(tmp_path, np.zeros_like(ROWS), part="rows")
    assert here.tobytes() == ROWS.tobytes()


def test_blocks_cut_a_shard_into_all_of_it_each_once():
    for shape in ((), (1,), (5, 0), (7, 300, 11), (1 << 22,), (3, 5, 100_003)):
        box = Box((2,) * len(shape), shape)
        covered, blocks = 0, list(pieces(box, 4))
        for block in blocks:
            assert block.meet(box) == block
            covered += size_of(block)
        assert covered == size_of(box)
        assert len(blocks) <= 40
        middles = [whole((1,) * len(shape))._replace(start=b.start) for b in blocks]
        for block, middle in zip(blocks, middles, strict=True):
            assert [b for b in blocks if b.meet(middle)] == [block]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (1, 4), (4, 1)])
def test_other_numbers_of_processes_and_devices_restore_the_same_bits(
    processes, devices, two_processes
):
    script = """
check(fg.checkpoint.restore(folder, tree(0)))
check({"rows": fg.checkpoint.restore(folder, tree(0)["rows"], part="rows")})
print("the same bits")
"""
    started = launch(BEGIN + script, processes, two_processes, devices=devices)
    for each in ends(started):
        assert "the same bits" in each.output
        assert each.status == 0


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("steps"))
    ended = ends(launch(BEGIN + SAVE, 2, folder, devices=2))
    assert [each.status for each in ended] == [0, 0], ended
    return folder


@pytest.mark.slow
def test_two_processes_restore_what_one_wrote_without_them(tmp_path):
    (alone,) = ends(launch(BEGIN + SAVE, 1, str(tmp_path), devices=4))
    content = (tmp_path / "00000001" / "manifest.json").read_text()
    assert json.loads(content)["content"]["format"] == 1
    assert alone.status == 0
    script = """
check(fg.checkpoint.restore(folder, tree(0)))
print("the same bits")
"""
    for each in ends(launch(BEGIN + script, 2, str(tmp_path), devices=2)):
        assert "the same bits" in each.output


@pytest.mark.slow
def test_each_process_reads_no_more_than_its_part(tmp_path):
    script = """
big = {"a": put(np.arange(1 << 20, dtype=np.float32).reshape(1024, -1), P("data")),
       "b": put(np.arange(1 << 18, dtype=np.float32), P("data"))}
like = jax.tree.map(jnp.zeros_like, big)
if mine.count == 2:
    fg.checkpoint.save(folder, big, step=1)

def read():
    counted = Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0]
    return int(counted)

fg.checkpoint.restore(folder, like)  # once before, to import and compile
start = read()
found = fg.checkpoint.restore(folder, like)
print("read", read() - start)
for name, x in big.items():
    for a, b in zip(x.addressable_shards, found[name].addressable_shards):
        assert np.array_equal(np.asarray(a.data), np.asarray(b.data))
"""
    size = 4 * ((1 << 20) + (1 << 18))
    for processes in 2, 4:
        for each in ends(launch(BEGIN + script, processes, str(tmp_path))):
            found = int(each.output.split("read ")[1].split()[0])
            assert size // processes <= found <= size // processes + 100_000
            assert each.status == 0


@pytest.mark.slow
def test_a_full_disk_of_one_process_fails_in_all_with_its_cause(tmp_path):
    script = """
append = shard_files._append

def on_full_disk(file, data):
    if mine.rank == full:
        raise OSError(28, "No space left on device")
    append(file, data)

def save_in_background():
    with fg.checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(2, {"state": tree(0)})

shard_files._append = on_full_disk
for full in range(2):
    for save in (
        lambda: fg.checkpoint.save(folder, tree(0), step=2),
        save_in_background,
    ):
        start = time.monotonic()
        try:
            save()
        except fg.checkpoint.CheckpointError as error:
            is_named = full == 0 or "got process 1: OSError" in str(error)
            print("failed", "No space left on device" in str(error), is_named,
                  "last good checkpoint is step 1" in str(error),
                  time.monotonic() - start < 10)
print(fg.checkpoint.latest_step(folder))
shard_files._append = append
check(fg.checkpoint.restore(folder, tree(0)))
fg.checkpoint.save(folder, tree(), step=3)
print(fg.checkpoint.steps(folder))
"""
    for each in ends(launch(BEGIN + SAVE + script, 2, str(tmp_path))):
        assert each.output.count("failed True True True True") == 4, each.output
        assert "\n1\n[1, 3]" in each.output
        assert each.status == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *(".writing", "00000001", "00000003")
    }


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_kill_while_saving_leaves_the_checkpoint_before_and_is_reported(
    rank, tmp_path
):
    script = f"""
append = shard_files._append

def slowly(file, data):
    append(file, data)
    if mine.rank == {rank}:
        file.flush()
        print("is writing", flush=True)
        time.sleep(60)

shard_files._append = slowly
fg.checkpoint.save(folder, tree(0), step=2)
"""
    started = launch(BEGIN + SAVE + script, 2, str(tmp_path))
    killed, other = started[rank], started[1 - rank]
    for line in killed.stdout:
        if "is writing" in line:
            break
    start = time.monotonic()
    killed.send_signal(signal.SIGKILL)
    output, _ = other.communicate(timeout=50)
    assert time.monotonic() - start < 10
    assert other.returncode != 0
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    # JAX ends a process whose first one has ended, or its next computation fails.
    lost = ["got one that has ended", "distributed service"]
    told = ["process 1 ended before writing all shards"] if rank else lost
    assert any(text in output for text in told)
    assert latest_step(tmp_path) == 1
    check(tmp_path / "00000001")
    save(tmp_path, {"rows": ROWS}, step=2)  # and removes what the killed one left
    assert {*os.listdir(tmp_path)} == {".writing", "00000001", "00000002"}


@pytest.mark.slow
def test_a_flipped_bit_of_one_shard_is_found_and_the_step_before_is_used(tmp_path):
    script = """
fg.checkpoint.save(folder, tree(0), step=2)
path = Path(folder, "00000002", "arrays", "00001")
if mine.rank == 1:
    content = bytearray(path.read_bytes())
    content[5] ^= 4
    path.write_bytes(content)
mine.any(False)
try:
    fg.checkpoint.restore(folder, tree(0), step=2)
except fg.checkpoint.CheckpointError as error:
    print("refused", "other bytes" in str(error), "00001 at byte 0, leaf" in str(error))
check(fg.checkpoint.restore(folder, tree(0)))
checkpoints = fg.checkpoint.Checkpoints(folder)
found = checkpoints.newest({"state": tree(0)})
print(found.step, [path.name for path in checkpoints.damaged])
"""
    ended = ends(launch(BEGIN + SAVE + script, 2, str(tmp_path)))
    for each in ended:
        assert "refused True True" in each.output, each.output
        assert "1 ['00000002']" in each.output
    assert "is damaged and is not used" in ended[0].output
    assert superfluous(tmp_path, keep=1) == []  # the damaged one does not count
    check(tmp_path / "00000001")
    with pytest.raises(CheckpointError, match=r"other bytes in .*00001 at byte 0"):
        check(tmp_path / "00000002")


@pytest.mark.slow
def test_a_late_process_and_folders_that_are_not_shared_are_named(tmp_path):
    script = """
import fngrad.checkpoint.joint_writing as joint_writing

def refused(save):
    start = time.monotonic()
    try:
        save()
    except fg.checkpoint.CheckpointError as error:
        print("refused", time.monotonic() - start < 20, error)

append = shard_files._append
shard_files._append = lambda file, data: (time.sleep(mine.rank * 3), append(file, data))
small = {"a": put(np.ones(4, np.float32), P("data"))}
refused(lambda: fg.checkpoint.save(folder, small, step=2, limit_seconds=0.2))
shard_files._append = append
print("after", fg.checkpoint.steps(folder), sorted(os.listdir(folder)))
joint_writing._PATIENCE = 0.2
refused(lambda: fg.checkpoint.save(f"{folder}.{mine.rank}", small, step=3))
"""
    late = "got none yet of process 1"
    apart = "need a folder of checkpoints on a file system that all processes share"
    for each in ends(launch(BEGIN + SAVE + script, 2, str(tmp_path))):
        first, second = (x for x in each.output.splitlines() if "refused" in x)
        assert first.startswith("refused True")
        assert late in first
        assert "limit_seconds=0.2" in first
        assert second.startswith("refused True")
        assert apart in second
        assert "after [1] ['.writing', '00000001']" in each.output
        assert each.status == 0
