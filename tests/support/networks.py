"""A network small enough for a dense Hessian, and data for it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

SIZES = (3, 4, 2)


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    """Return 26 parameters in four leaves."""
    rng = np.random.default_rng(seed)
    into, hidden, out = SIZES
    return {
        "w1": rng.normal(size=(into, hidden)),
        "b1": rng.normal(size=(hidden,)),
        "w2": rng.normal(size=(hidden, out)),
        "b2": rng.normal(size=(out,)),
    }


def batch(size: int = 7, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, SIZES[2], size)
    return {"x": rng.normal(size=(size, SIZES[0])), "y": np.eye(SIZES[2])[labels]}


def logits(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


def cross_entropy(outputs, batch):
    return -jnp.mean(jnp.sum(batch["y"] * jax.nn.log_softmax(outputs), axis=1))


def loss(params, batch):
    return cross_entropy(logits(params, batch), batch)


def dense_hessian(params, batch):
    """Return the dense Hessian from automatic differentiation."""
    flat, unravel = ravel_pytree(params)
    return jax.jit(jax.hessian(lambda w: loss(unravel(w), batch)))(flat)
