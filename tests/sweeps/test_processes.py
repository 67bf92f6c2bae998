"""A sweep on several processes has the result of one on each of them."""

import jax
import numpy as np
import pytest
from launched import ends, launch

pytestmark = pytest.mark.slow

RAISED = jax.errors.JaxRuntimeError.__name__  # by the version of jax

BEGIN = """
import pathlib, sys
sys.path[:0] = ["tests/support", "tests/sweeps"]
import jax, jax.numpy as jnp, numpy as np
import fngrad as fg
import fngrad.sweeps as sweeps

mine = fg.distributed.initialize(heartbeat_seconds=10)
import fngrad.sweeps.running.lane_training as lane_training
from sweep_problems import arrays_of, light, quiet_sweep

folder = pathlib.Path(sys.argv[1])
trained, train = [], lane_training.Training._train

def counting(self, block, numbers):
    trained.append(len(numbers))
    return train(self, block, numbers)

lane_training.Training._train = counting

def sweep(name, points, keys, devices=None, fn=light, **options):
    trained.clear()
    rates = {"learning_rate": np.geomspace(0.01, 10.0, points)}
    result = quiet_sweep(rates, keys, fn, devices=devices, **options)
    np.savez(folder / f"{name}-{mine.rank}-of-{mine.count}.npz", *arrays_of(result))
    print(name, "trained", sum(trained), "restored", result.notes["restored"])
    return result
"""
SAME = """
sweep("many", 128, 2, mode=16)
sweep("uneven", 3, 3)
sweep("few", 1, 2)
sweep("all-at-once", 4, 4, mode="vmap")
small = sweep("small", 6, 3, folder=folder / f"saved-{mine.count}", chunk=2)
sweep("again", 6, 3, folder=folder / f"saved-{mine.count}")
sweep("larger", 6, 5, extend=small)
sweep("from-folder", 6, 5, extend=folder / f"saved-{mine.count}",
      folder=folder / f"larger-{mine.count}")
"""
NAMES = ["many", "uneven", "few", "all-at-once", "small", "again", "larger"]


SEARCH = """
from test_search import searched

result = searched(trials_per_batch=3, num_trials=6, devices=None,
                  folder=folder / f"search-{mine.count}")
np.savez(folder / f"search-{mine.rank}-of-{mine.count}.npz",
         *arrays_of(result), result.points["rate"])
print("has the study", result.notes["study"] is not None)
"""


def leaves_of(folder, name, rank, count):
    with np.load(folder / f"{name}-{rank}-of-{count}.npz") as content:
        return [content[key] for key in content.files]


def trained_by(output, name):
    (line,) = [x for x in output.splitlines() if x.startswith(f"{name} trained")]
    return int(line.split()[2]), int(line.split()[4])


def test_lanes_are_divided_and_each_process_gets_the_bits_of_one(tmp_path):
    (alone,) = ends(launch(BEGIN + SAME + SEARCH, 1, str(tmp_path), devices=2))
    together = ends(launch(BEGIN + SAME + SEARCH, 2, str(tmp_path)))
    for each in (alone, *together):
        assert each.status == 0, each.output
    for name in [*NAMES, "from-folder", "search"]:
        expected = leaves_of(tmp_path, name, 0, 1)
        for rank in (0, 1):
            found = leaves_of(tmp_path, name, rank, 2)
            for x, y in zip(expected, found, strict=True):
                np.testing.assert_array_equal(x, y, err_msg=name)
    first, second = (each.output for each in together)
    assert "has the study True" in first
    assert "has the study False" in second
    counts = {n: (trained_by(first, n)[0], trained_by(second, n)[0]) for n in NAMES}
    assert counts == {
        "many": (128, 128),
        "uneven": (5, 4),
        "few": (2, 0),
        "all-at-once": (8, 8),
        "small": (10, 8),
        "again": (0, 0),
        "larger": (8, 4),
    }
    assert trained_by(second, "again") == (0, 18)
    assert trained_by(second, "from-folder")[1] == 18


ONE_SIDED = """
to_host, hits = lane_training.to_host, []

def broken(outputs, error):
    if mine.rank == 1 and not hits:
        hits.append(1)
        raise error
    return to_host(outputs)

def with_error(error):
    hits.clear()
    lane_training.to_host = lambda outputs: broken(outputs, error)

import warnings
warnings.simplefilter("ignore")

def scaled(point, key, scale):
    if scale == 3 and mine.rank == 1:
        raise ValueError("a file is missing here")
    return light(point, key)

result = sweep("tracing", 3, 3, fn=scaled, static={"scale": [3, 1]})
print("failure", [f.error for f in result.notes["failures"]])
with_error(jax.errors.JaxRuntimeError("INTERNAL: broken"))
result = sweep("running", 3, 3, fn=scaled, static={"scale": [2, 1]})
(failure,) = result.notes["failures"]
print("failure", [failure.error], failure.static)
with_error(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
result = sweep("narrowed", 6, 3)
print("width", result.notes["modes"][0]["width"])
result = sweep("auto", 512, 2, mode="auto")
print("width by time", result.notes["modes"][0]["reason"])
try:
    sweep("elsewhere", 3, 3, devices=jax.devices())
except ValueError as error:
    print("refused", error)
try:
    sweep("differs", 3 + mine.rank, 3)
except ValueError as error:
    print("refused", error)
with_error(OSError("the disk of one is full"))
sweep("ends", 3, 3)
"""


def test_an_error_in_one_process_is_known_to_all(tmp_path):
    first, second = ends(launch(BEGIN + ONE_SIDED, 2, str(tmp_path)))
    for rank, output in enumerate((first.output, second.output)):
        told = "PeerFailedError: process 1: " if rank == 0 else ""
        assert f"failure ['{told}ValueError: a file is missing here']" in output
        assert f"failure ['{told}{RAISED}: INTERNAL: broken'] {{'scale': 2}}" in output
        assert "width 2" in output
        assert "refused need devices of this process, as jax.local_devices()" in output
        assert "too short to pay for trying other widths" in output
        assert "refused need the same sweep, on as many devices, in all" in output
    for name in ("tracing", "running", "narrowed", "auto"):
        for x, y in zip(
            *(leaves_of(tmp_path, name, r, 2) for r in (0, 1)), strict=True
        ):
            np.testing.assert_array_equal(x, y, err_msg=name)
    assert "OSError: the disk of one is full" in second.output
    assert "need all processes of the sweep, got no answer of one" in first.output
    assert all(each.status != 0 and each.seconds < 60 for each in (first, second))
