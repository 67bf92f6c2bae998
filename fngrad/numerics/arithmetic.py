"""Roots, powers and quotients with finite values and gradients at zero."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Magnitudes in float32, whose largest number is about 2**128.
LARGE = 2.0**40  # products of three numbers up to it fit
FAR = 2.0**96  # a ratio beyond it is taken in units of a power of two
FITTING_RATE = 2.0**-64  # where a norm overflows, it is taken of this times the vector


def replaced(condition: jax.Array, x: jax.Array, value: float) -> jax.Array:
    """Return x, with a number in the places where a condition holds.

    Where the shapes are equal it is one equation, which is traced, batched and
    differentiated in a fraction of the time of `jnp.where`, a function of its own.
    """
    if jnp.shape(condition) != jnp.shape(x):
        return jnp.where(condition, jnp.asarray(value, x.dtype), x)
    return lax.select(condition, lax.full_like(x, value), x)


def largest(
    x: jax.Array,
    axis: int | Sequence[int] | None = None,
    keepdims: bool = False,
    initial: float | None = None,
) -> jax.Array:
    """Return the largest entry along the axes, NaN if one is NaN."""
    return _extreme(functools.partial(jnp.max, initial=initial), x, axis, keepdims)


def smallest(
    x: jax.Array, axis: int | Sequence[int] | None = None, keepdims: bool = False
) -> jax.Array:
    """Return the smallest entry along the axes, NaN if one is NaN."""
    return _extreme(jnp.min, x, axis, keepdims)


def _extreme(
    reduce: Callable[..., jax.Array], x: jax.Array, axis: Any, keepdims: bool
) -> jax.Array:
    extreme = reduce(x, axis=axis, keepdims=keepdims)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return extreme
    # XLA on CPU loses a NaN of large arrays here (JAX 0.10), but not in a sum.
    size = jnp.sum(jnp.abs(lax.stop_gradient(x)), axis=axis, keepdims=keepdims)
    return extreme * jnp.where(jnp.isnan(size), jnp.nan, 1).astype(x.dtype)


def clipped(condition: jax.Array, x: jax.Array, largest: float) -> jax.Array:
    """Return x, clipped to [-largest, largest] in the places where a condition holds.

    In a few equations, see `replaced`.
    """
    bound = np.asarray(largest, x.dtype)
    return lax.select(condition, lax.clamp(-bound, x, bound), x)


def power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return base ** exponent, 0 with zero gradient where the base is 0."""
    is_zero = base == 0
    return jnp.where(is_zero, 0, jnp.where(is_zero, 1, base) ** exponent)


def power_or_one(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return base ** exponent, 1 where the exponent is 0, with finite gradients."""
    return jnp.where(exponent == 0, 1, power(base, exponent))


def square_root(x: jax.Array) -> jax.Array:
    """Return the root, 0 with zero gradient where x is 0."""
    is_zero = x == 0
    return replaced(is_zero, jnp.sqrt(replaced(is_zero, x, 1)), 0)


def inverse_root(x: jax.Array) -> jax.Array:
    """Return 1 / sqrt(x), 0 with zero gradient where x is 0."""
    return lax.rsqrt(replaced(x == 0, x, np.inf))


def cube_root(x: jax.Array) -> jax.Array:
    """Return the cube root, 0 with zero gradient where x is 0."""
    is_zero = x == 0
    return jnp.where(is_zero, 0, jnp.cbrt(jnp.where(is_zero, 1, x)))


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return numerator / denominator, 0 with zero gradient where the latter is 0."""
    is_zero = denominator == 0
    # Select before the division: a selected result is rounded with what follows it
    # in one way if the hyperparameters are constants, in another if they are data.
    numerator = replaced(is_zero, numerator, 0)
    return numerator / replaced(is_zero, denominator, 1)


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a + b rounded, and the error of that rounding, which is exact.

    The error is 0 where the sum is not finite.

    References:
        Knuth, The art of computer programming, volume 2, 1969, section 4.2.2.
    """
    total = a + b
    of_b = total - a
    rest = (a - (total - of_b)) + (b - of_b)
    return total, jnp.where(jnp.isfinite(rest), rest, jnp.zeros_like(rest))
