"""Several processes: what they agree on, and how one that fails ends all."""

import pytest
from launched import ends, launch

pytestmark = pytest.mark.slow

BEGIN = """
import os, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
import fngrad as fg

mine = fg.distributed.initialize(heartbeat_seconds=10)
"""


def test_all_agree_on_what_the_first_says():
    script = """
value = {"t": mine.rank + 0.25, "n": 7 - mine.rank, "flag": mine.rank == 1}
value["a"] = np.arange(3, dtype=np.int32) + mine.rank
agreed = mine.agree(value)
print(agreed["t"], agreed["n"], agreed["flag"], agreed["a"], mine.any(mine.rank == 1),
      mine.any(False), mine.is_first, mine)
odd = b"/\\xff".decode(errors="surrogateescape")  # a path that is not UTF-8
assert mine.texts(odd) == [odd, odd]
wide = mine.gather(np.array([0.1, 2.0**40]) + mine.rank)  # no bit of 64 is lost
np.testing.assert_array_equal(wide, [[0.1, 2.0**40], [1.1, 2.0**40 + 1]])
assert wide.dtype == np.float64
assert mine.least(3 - mine.rank) == 2
print(mine.texts(""), mine.texts("ä" * mine.rank), mine.texts(f"of {mine.rank}"))
"""
    first, second = ends(launch(BEGIN + script, 2))
    said = "0.25 7 False [0 1 2] True False"
    assert f"{said} True Processes(rank=0, count=2)" in first.output
    assert f"{said} False Processes(rank=1, count=2)" in second.output
    told = "['', ''] ['', 'ä'] ['of 0', 'of 1']"
    assert told in first.output
    assert told in second.output
    assert first.status == second.status == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_in_one_process_ends_all_at_once(rank):
    script = f"""
for step in range(10_000):
    if step == 3 and mine.rank == {rank}:
        raise OSError("the disk of one is full")
    mine.any(False)
"""
    ended = ends(launch(BEGIN + script, 2))
    assert "OSError: the disk of one is full" in ended[rank].output
    assert all(each.status != 0 and each.seconds < 60 for each in ended)
    assert "Connection" in ended[1 - rank].output


def test_alone_nothing_is_connected_and_all_is_said_by_oneself():
    script = """
print(mine, mine.is_first, mine.agree({"t": 0.5}), mine.any(True), mine.any(False))
"""
    (alone,) = ends(launch(BEGIN + script, 1))
    assert "Processes(rank=0, count=1) True {'t': 0.5} True False" in alone.output
    assert alone.status == 0
