"""A writer that is killed at any moment leaves only complete steps."""

import random
import time
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from forked import Forked

from fngrad.checkpoint import Checkpoints, steps

WRITER = """
import sys
import warnings
import numpy as np
from fngrad.checkpoint import Checkpoints
warnings.simplefilter("error")
checkpoints = Checkpoints(sys.argv[1], keep=2, best=("val/loss", "min"))
saved = checkpoints.newest()
step = saved.step if saved else 0
while True:
    step += 1
    state = {"step": np.full(1000, step), "big": np.full(200_000, step, np.float32)}
    checkpoints.save(step, {"state": state}, metrics={"val/loss": float(step)})
    if checkpoints.steps():
        print(step, flush=True)
"""


@pytest.mark.slow
def test_no_kill_leaves_a_torn_step_and_every_restart_continues(tmp_path):
    moments = random.Random(0)
    reached = 0
    for _ in range(15):
        child = Forked(WRITER, tmp_path)
        assert child.stdout.readline().strip().isdigit()
        time.sleep(moments.uniform(0, 0.2))
        child.kill()
        child.communicate()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            saved = Checkpoints(tmp_path).newest()
        assert saved is not None
        assert saved.step > reached
        reached = saved.step
        for leaf in saved.leaves.values():
            assert (leaf.data == saved.step).all()
        assert steps(tmp_path)[0] == 1
        hidden = [path for path in tmp_path.iterdir() if path.name[0] == "."]
        assert len(hidden) <= 3  # the lock, a half-written step, a half-deleted one
    last = Checkpoints(tmp_path)
    last.save(reached + 1, {"state": {"step": jnp.ones(1), "big": np.ones(1)}})
    last.close()
    hidden = [path.name for path in tmp_path.iterdir() if path.name[0] == "."]
    assert hidden == [".writing"]
