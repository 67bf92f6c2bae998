"""One compilation wherever state and data are placed, on eight virtual devices."""

import os

import pytest
from forked import run

CHILD = """
import logging, sys, warnings
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import fngrad as fg

warnings.simplefilter("error")
warnings.filterwarnings("ignore", "the mesh of the state")  # has no axis "data"
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("d", "m"))
on = lambda *axes: NamedSharding(mesh, P(*axes))
logger, compiled = logging.getLogger("jax"), []

class Compiled(logging.Handler):
    def emit(self, record):
        text = record.getMessage()
        loops = ("jit(one)", "jit(many)", "jit(fed)")
        if "Finished XLA compilation" in text and any(x in text for x in loops):
            compiled.append(text)

logger.addHandler(Compiled())
logger.propagate = False
optimizer = fg.chain(fg.clip_by_global_norm(1.0), fg.adam(0.1))

def run(where, loop):
    def loss_fn(w, batch):
        h = jnp.tanh(batch["x"] @ w["in"] + w["bias"])
        return jnp.mean((h @ w["out"] - 1.0) ** 2)

    step = fg.make_step(loss_fn, optimizer)
    data = fg.data.from_arrays({"x": np.ones((16, 16), np.float32)}, 8)
    params = {"in": 0.1 * jnp.eye(16), "bias": jnp.zeros(16), "out": 0.1 * jnp.eye(16)}
    spread = {"in": on("d", "m"), "bias": on(), "out": on("m", "d")}
    if where == "params":
        params = jax.device_put(params, spread)
    if where == "one":
        params["in"] = jax.device_put(params["in"], spread["in"])
    state = fg.init_state(params, optimizer, 0)
    if where in ("state", "both"):
        state = jax.device_put(state, on())
    if where in ("data", "both", "iterable"):
        data = jax.device_put(data, on())
    if where == "iterable":
        data = [jax.device_put(data.batch(i), on("d")) for i in range(6)]
        warnings.simplefilter("ignore")
    compiled.clear()
    result = fg.fit(step, state, data, num_steps=6, loop=loop, progress=False)
    count, loss = result.history.notes["compile_count"], result.history["loss"][-1]
    return count, len(compiled), float(loss)

jax.config.update("jax_log_compiles", True)
for case in sys.argv[1:]:
    print(case, *run(*case.split("-")))
"""
PLACES = ["nothing", "state", "params", "one", "data", "both"]
CASES = [f"{where}-{loop}" for where in PLACES for loop in ("python", "scan")]


@pytest.mark.slow
def test_a_run_compiles_once_wherever_its_arrays_are():
    cases = [*CASES, "iterable-python"]
    flags = os.environ.get("XLA_FLAGS", "")  # the suite has some, or none
    flags += " --xla_force_host_platform_device_count=8"
    child = run(CHILD, *cases, variables={"XLA_FLAGS": flags})
    assert child.returncode == 0, child.stderr
    rows = [line.split() for line in child.stdout.splitlines()]
    assert [row[0] for row in rows] == cases
    for case, traces, compilations, loss in rows:
        assert (traces, compilations) == ("1", "1"), case
        assert float(loss) == pytest.approx(0.13938, abs=1e-5), case
