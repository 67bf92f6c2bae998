"""Processes begin together, however late one is, and end with statuses of their own."""

import pytest
from launched import ends, launch

BEGIN = """
import sys
sys.path.insert(0, "tests/support")
import fngrad as fg
mine = fg.distributed.initialize(heartbeat_seconds=10)
from shared_run import *
folder, mesh = sys.argv[1], fg.sharding.make_mesh()
"""
EXITED = """
def end(step, *_):
    if step == 20 and mine.rank == 1:
        sys.exit(3)


shared_fit(mesh=mesh, checkpoint_dir=folder, save_every=8, callbacks=[end])
"""


@pytest.mark.slow
def test_each_process_ends_with_its_own_status_though_the_first_ends(tmp_path):
    """The first process connects the others: JAX aborts them once it has ended."""
    ended = ends(launch(BEGIN + EXITED, 2, str(tmp_path), devices=2))
    assert [x.status for x in ended] == [1, 3], ended


LATE = """
import time
import jax.numpy as jnp
import fngrad as fg
import fngrad.sharding as sharding
mine = fg.distributed.initialize()
mesh, optimizer = sharding.make_mesh(data=4), fg.sgd(0.1)
traces = []

def loss_fn(w, x):
    traces.append(None)
    if mine.rank == 1 and len(traces) == 2:  # the first is for the metrics' shapes
        time.sleep(40)
    return jnp.mean((x @ w) ** 2)

result = fg.fit(
    fg.make_step(loss_fn, optimizer),
    fg.init_state(jnp.ones(3), optimizer, 0),
    fg.data.from_arrays(jnp.ones((8, 3)), 4, seed=0),
    num_steps=2,
    mesh=mesh,
    progress=False,
)
assert len(traces) == 2
print("ended after step", int(result.state.step))
"""


@pytest.mark.slow
def test_a_process_that_compiles_for_long_is_waited_for():
    for each in ends(launch(LATE, 2, devices=2)):
        assert each.status == 0, each.output
        assert "ended after step 2" in each.output
