"""Small training functions and points for sweeps."""

import jax
import jax.numpy as jnp
import numpy as np
from linear_regression import ARRAYS, DATA, squared_errors

import fngrad.sweeps as sweeps
from fngrad.optimizers import sgd
from fngrad.steps import freeze_diverged
from fngrad.training import init_state, make_step, run

STEPS = 6
POINTS = sweeps.grid(learning_rate=[0.01, 0.1, 0.3, 1e6, 0.2])  # one diverges
METRIC = ("val/loss", "min")


def loss_fn(params, batch):
    return jnp.mean(squared_errors(params, batch))


def train_fn(point, key, data=DATA):
    k_init, k_data = jax.random.split(key)
    params = {"w": jax.random.normal(k_init, 2), "b": jnp.zeros(())}
    optimizer = sgd(point["learning_rate"])
    step = freeze_diverged(make_step(loss_fn, optimizer))
    return run(
        step,
        init_state(params, optimizer, key),
        data.reseed(k_data),
        STEPS,
        metric_fn=lambda params, batch: {"loss": squared_errors(params, batch)},
        eval_data=ARRAYS,
    )


def light(point, key, data=None):
    """Descend on w**2; compiles in a fraction of `train_fn`'s time."""

    def step(w, _):
        return w - point["learning_rate"] * w, w**2

    w, losses = jax.lax.scan(step, 1 + jax.random.uniform(key), None, STEPS)
    return {"w": w, "key": key}, {"loss": losses, "val/loss": losses[-1:]}


def quiet_sweep(points=POINTS, keys=3, fn=train_fn, **options):
    options = {"progress": False, "mode": 4, "devices": jax.devices()[:1]} | options
    return sweeps.sweep(fn, points, keys, **options)


def arrays_of(result):
    """Return all that a sweep computed, as NumPy leaves."""
    outputs = (result.state, result.history, result.diverged_at)
    return [
        np.asarray(jax.random.key_data(x))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else np.asarray(x)
        for x in jax.tree.leaves(outputs)
    ]


def assert_same_bits(a, b):
    for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
        np.testing.assert_array_equal(x, y)
