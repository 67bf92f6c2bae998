"""Step counters, and the weight that an average from zero has seen."""

import jax
import jax.numpy as jnp

from fngrad.numerics.checks import MAX_STEP


def first_step() -> jax.Array:
    """Return step 0: int32, shape ()."""
    return jnp.zeros((), jnp.int32)


def next_step(step: jax.Array) -> jax.Array:
    """Return step + 1; at the largest int32 it stays there."""
    return jnp.where(step < MAX_STEP, step + 1, step)


def bias_correction(decay: jax.Array, step: jax.Array) -> jax.Array:
    r"""Return $1 - d^t$ with t = step + 1: the weight an EMA from zero has seen.

    As ``-expm1(t log d)`` it is exact to 2e-7 in float32, where ``1 - d**t`` puts
    Adam 3e-5 away from its float64 trajectory.
    """
    t = step.astype(decay.dtype) + 1  # step + 1 may not fit in int32
    return -jnp.expm1(t * jnp.log(decay))
