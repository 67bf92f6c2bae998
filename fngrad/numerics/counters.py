"""Step counters."""

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.numerics.checks import MAX_STEP


def first_step() -> jax.Array:
    """Return step 0: int32, shape ()."""
    return jax.device_put(np.zeros((), np.int32))  # compiles nothing


def next_step(step: jax.Array) -> jax.Array:
    """Return step + 1; at the largest int32 it stays there."""
    return jnp.where(step < MAX_STEP, step + 1, step)
