"""A correct run with one parameter; tests replace one argument by a mistake."""

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

ARRAYS = {
    "x": np.arange(8, dtype=np.float32),
    "y": np.arange(8, dtype=np.float32),
}
DATA = fg.data.from_arrays(ARRAYS, 4)
OPTIMIZER = fg.sgd(1e-3)


def squared_error(w, batch):
    return jnp.mean((batch["x"] * w - batch["y"]) ** 2)


def metric_fn(w, batch):
    return {"loss": (batch["x"] * w - batch["y"]) ** 2}


STEP = fg.make_step(squared_error, OPTIMIZER)
STATE = fg.init_state(jnp.zeros(()), OPTIMIZER, 0)


def fit(step=STEP, state=STATE, data=DATA, **options):
    return fg.fit(step, state, data, num_steps=2, progress=False, **options)


def run(step=STEP, state=STATE, data=DATA, **options):
    return fg.run(step, state, data, 2, **options)


both = pytest.mark.parametrize("train", [fit, run])


def trained(loss_fn, state=STATE, train=fit):
    return train(fg.make_step(loss_fn, OPTIMIZER), state)
