"""Several processes: what they agree on, and how one that fails ends all."""

import re
import time

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
sys.exit(5 + mine.rank)
"""
    first, second = ends(launch(BEGIN + script, 2))
    said = "0.25 7 False [0 1 2] True False"
    assert f"{said} True Processes(rank=0, count=2)" in first.output
    assert f"{said} False Processes(rank=1, count=2)" in second.output
    told = "['', ''] ['', 'ä'] ['of 0', 'of 1']"
    assert told in first.output
    assert told in second.output
    assert [first.status, second.status] == [5, 6]
    assert "at once" not in first.output + second.output


def failing(count, rank, what):
    """Return how processes end of which one does something, and how long that takes."""
    script = f"""
for step in range(10_000):
    if step == 3 and mine.rank == {rank}:
        print("failed at", time.time())
        {what}
    mine.any(False)
"""
    ended = ends(launch(BEGIN + script, count))
    now = time.time()
    return ended, now - float(re.findall("failed at (.*)", ended[rank].output)[0])


@pytest.mark.parametrize(("count", "rank"), [(2, 0), (2, 1), (4, 1)])
def test_an_exception_in_one_process_ends_all_at_once(count, rank):
    full = 'raise OSError("the disk of one is full")'
    ended, seconds = failing(count, rank, full)
    assert "OSError: the disk of one is full" in ended[rank].output
    assert all(each.status != 0 for each in ended)
    assert seconds < 10
    if count == 2:
        assert "Connection" in ended[1 - rank].output


@pytest.mark.parametrize(
    ("count", "rank", "told", "status"), [(2, 0, "3", 3), (4, 2, "'no data'", 1)]
)
def test_an_exit_that_failed_in_one_process_ends_all_within_ten_seconds(
    count, rank, told, status
):
    ended, seconds = failing(count, rank, f"sys.exit({told})")
    assert ended[rank].status == status
    assert f"process {rank} exits by {told}, others do not" in ended[rank].output
    assert all(each.status != 0 for each in ended)
    assert seconds < 10


def test_an_exit_with_status_zero_waits_for_the_others_and_a_caught_one_is_none():
    script = """
fg.distributed._PATIENCE = 0.2
mine.any(False)
if mine.rank == 1:
    sys.exit(0)
try:
    sys.exit(4)
except SystemExit as error:
    assert error.code == 4 and type(error).__name__ == "SystemExit"
time.sleep(2)
print("drew its pictures")
"""
    first, second = ends(launch(BEGIN + script, 2))
    assert [first.status, second.status] == [0, 0]
    assert "drew its pictures" in first.output
    assert "at once" not in first.output + second.output


def test_an_exit_that_failed_first_waits_for_what_this_process_has_to_do():
    script = """
import atexit
fg.distributed._PATIENCE = 0.2
mine.any(False)
atexit.register(lambda: time.sleep(2) or print("uploaded its records"))
if mine.rank == 1:
    sys.exit(4)
while True:
    mine.any(False)
"""
    _, second = ends(launch(BEGIN + script, 2))
    assert second.status == 4
    assert "uploaded its records" in second.output


def test_a_process_whose_output_nobody_reads_ends_at_once_too():
    closed = "closed, w = os.pipe(); os.close(closed); os.dup2(w, 2)"
    ended, seconds = failing(2, 1, f'{closed}; raise OSError("unread")')
    assert all(each.status != 0 for each in ended)
    assert seconds < 10


def test_an_exit_of_a_thread_ends_the_thread_and_a_caught_one_is_a_usual_one():
    script = """
import pickle, threading, traceback
thread = threading.Thread(target=sys.exit, args=(3,))
thread.start()
thread.join()
try:
    sys.exit(4)
except SystemExit as error:
    print(traceback.format_exception_only(error), pickle.loads(pickle.dumps(error)))
try:
    sys.exit()
except SystemExit as error:
    assert error.args == () and error.code is None
print("at the end")
sys.exit(False)
"""
    for each in ends(launch(BEGIN + script, 2)):
        assert "['SystemExit: 4\\n'] 4\nat the end" in each.output
        assert each.status == 0
        assert "Exception in thread" not in each.output


def test_alone_nothing_is_connected_and_all_is_said_by_oneself():
    script = """
print(mine, mine.is_first, mine.agree({"t": 0.5}), mine.any(True), mine.any(False))
"""
    (alone,) = ends(launch(BEGIN + script, 1))
    assert "Processes(rank=0, count=1) True {'t': 0.5} True False" in alone.output
    assert alone.status == 0
