"""A small training step for autopsies."""

import jax.numpy as jnp

import fngrad.data.dataset as dataset
from fngrad.optimizers import sgd
from fngrad.postmortem import autopsy
from fngrad.training import init_state, make_step

X = jnp.arange(24.0).reshape(8, 3) / 24
DATA = dataset.from_arrays({"x": X}, batch_size=4, shuffle=False)


def examine(loss_fn, params, data=DATA, optimizer=None, make=make_step, **kwargs):
    optimizer = optimizer or sgd(0.1)
    state = init_state(params, optimizer, key=0)
    return autopsy(make(loss_fn, optimizer), state, data, **kwargs)


def mean_square(params, batch):
    return jnp.mean(jnp.square(batch["x"] @ params["w"]))


W = {"w": jnp.ones(3)}
