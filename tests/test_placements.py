"""One compilation wherever state and data are placed, on eight virtual devices."""

import os
import subprocess
import sys

import pytest

CHILD = """
import sys, warnings
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import fngrad as fg

warnings.simplefilter("error")
where, loop = sys.argv[1:]
mesh = Mesh(np.array(jax.devices()), ("d",))
whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("d"))
optimizer = fg.adam(0.1)
step = fg.make_step(lambda w, b: jnp.mean((b["x"] @ w - 1.0) ** 2), optimizer)
data = fg.data.from_arrays({"x": np.ones((16, 16), np.float32)}, 8)
params = jnp.zeros(16)
if where == "params":
    params = jax.device_put(params, split)
state = fg.init_state(params, optimizer, 0)
if where in ("state", "both"):
    state = jax.device_put(state, whole)
if where in ("data", "both"):
    data = jax.device_put(data, whole)
result = fg.fit(step, state, data, num_steps=6, loop=loop, progress=False)
print(result.history.notes["compile_count"], float(jnp.sum(result.state.params)))
"""


@pytest.mark.parametrize("loop", ["python", "scan"])
@pytest.mark.parametrize("where", ["nothing", "state", "params", "data", "both"])
@pytest.mark.slow
def test_a_run_compiles_once_wherever_its_arrays_are(where, loop):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, where, loop],
        env={**os.environ, **flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    count, total = child.stdout.split()
    assert count == "1"
    assert float(total) == pytest.approx(0.3533, abs=1e-4)  # the same everywhere
