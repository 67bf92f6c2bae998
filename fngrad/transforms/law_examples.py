"""Parameters and gradients on which the laws of transforms are checked."""

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.types import Params, Updates


def params() -> Params:
    """Return parameters with a list, a matrix, a vector and a scalar."""
    return {
        "layers": [
            {"weight": jnp.linspace(-1.0, 2.0, 6).reshape(3, 2), "bias": jnp.ones(2)}
        ],
        "scale": jnp.full((), 0.5, float),
    }


def gradients(params: Params, step: int) -> Updates:
    """Return the gradients of a step: waves over the entries, another per step."""

    def wave(p: jax.Array) -> jax.Array:
        phase = np.arange(p.size).reshape(p.shape) + step
        return jnp.asarray(np.cos(phase), p.dtype)

    return jax.tree.map(wave, params)
