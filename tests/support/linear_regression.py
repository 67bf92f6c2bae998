"""A small linear regression, its data, its step, and a reference run."""

import jax
import jax.numpy as jnp

import fngrad.data.dataset as dataset
from fngrad.fitting.training_loop import fit
from fngrad.optimizers import momentum
from fngrad.training import init_state, make_step, run

X = jnp.sin(jnp.arange(40.0)).reshape(20, 2)
Y = X @ jnp.array([1.0, -2.0]) + 0.5
ARRAYS = {"x": X, "y": Y}
DATA = dataset.from_arrays(ARRAYS, batch_size=6, seed=1)
PARAMS = {"w": jnp.zeros(2), "b": jnp.zeros(())}
OPTIMIZER = momentum(0.05)


def squared_errors(params, batch):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def loss_fn(params, batch):
    return jnp.mean(squared_errors(params, batch))


def metric_fn(params, batch):
    return {"loss": squared_errors(params, batch)}


STEP = make_step(loss_fn, OPTIMIZER)


def first_state():
    return init_state(PARAMS, OPTIMIZER, 0)


def quiet_fit(state=None, data=DATA, **options):
    options = {"progress": False, "loop": "python"} | options
    return fit(STEP, first_state() if state is None else state, data, **options)


EXPECTED, EXPECTED_HISTORY = jax.jit(lambda s, d: run(STEP, s, d, 25))(
    first_state(), DATA
)
