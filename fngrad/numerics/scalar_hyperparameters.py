"""Hyperparameters are data.

A value written into the program and the same value passed as an argument give the same
bits: both pass through `hyper`, whose barrier keeps XLA from folding constants.
"""

import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fngrad.types import Hyper, Scalar


def hyper(value: Hyper, step: jax.Array | None = None) -> jax.Array:
    """Convert a hyperparameter to an array for the arithmetic; every one passes here.

    Args:
        value: a number, a scalar array or tracer, or a schedule ``step -> value``.
        step: int32, shape (); the argument of a schedule.

    Returns:
        A strong array of shape () and dtype ``jnp.result_type(float)``: float32, or
        float64 under x64, whatever the parameters are. Scalar arithmetic such as
        ``1 - b2`` belongs in this dtype; cast to a leaf's dtype once, afterwards.

    Raises:
        TypeError: if the value is a schedule and there is no step.
        ValueError: if the value is not a scalar.
    """
    if callable(value):
        if step is None:
            raise TypeError(
                f"need a number or a scalar array, got {value!r}: this "
                "hyperparameter counts no steps and takes no schedule"
            )
        value = value(step)
    if jnp.shape(value) != ():
        raise ValueError(f"need a scalar hyperparameter, got shape {jnp.shape(value)}")
    if isinstance(value, numbers.Real):
        value = float(value)  # an int may not fit in int32
    strong = jnp.asarray(value).astype(jnp.result_type(float))
    return lax.optimization_barrier(strong)


def hypers(step: jax.Array, *values: Hyper) -> tuple[jax.Array, ...]:
    """Convert several hyperparameters at one step, see `hyper`."""
    return tuple(hyper(value, step) for value in values)


def scalar(value: Scalar) -> jax.Array:
    """Return a strong scalar in memory of its own."""
    if isinstance(value, numbers.Real):
        return _moved(np.asarray(float(value), jnp.result_type(float)))
    return _moved(hyper(value))


@jax.jit  # outside of a program each operation would be one
def _moved(x: jax.Array) -> jax.Array:
    return lax.optimization_barrier(x) + jnp.zeros_like(x)


def scaled(factor: Scalar, x: jax.Array) -> jax.Array:
    """Return factor * x in the dtype of x."""
    return jnp.asarray(factor, x.dtype) * x
