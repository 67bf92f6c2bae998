"""Fractions of steps, interpolation and checks, which schedules are written with."""

from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
from fngrad.types import Scalar

Curve: TypeAlias = Callable[[int | jax.Array], jax.Array]
Count: TypeAlias = int | float | jax.Array  # a number of steps


def common_dtype(*counts: Count) -> list[jax.Array]:
    """Return counts of steps in one dtype: integer if all of them are."""
    arrays = [jnp.asarray(_reachable(count)) for count in counts]
    is_whole = all(jnp.issubdtype(array.dtype, jnp.integer) for array in arrays)
    dtype = jnp.result_type(int if is_whole else float)
    return [lax.optimization_barrier(array.astype(dtype)) for array in arrays]


def _reachable(count: Count) -> Count:
    """Return a float for an int that no int32 step reaches."""
    is_far = isinstance(count, Integral) and int(count) > numerics.MAX_STEP
    return float(count) if is_far else count


def as_float(count: jax.Array) -> jax.Array:
    """Return a count of steps as a float, float64 under x64."""
    return count.astype(jnp.result_type(float))


def progress(step: Count, begin: Count, length: Count) -> tuple[jax.Array, jax.Array]:
    """Return the fractions of a stretch of steps that lie ahead and behind."""
    now, begin, length = common_dtype(step, begin, length)
    length = jnp.maximum(length, 1)
    behind = jnp.clip(now - begin, 0, length)
    ahead, whole = as_float(length - behind), as_float(length)
    return ahead / whole, as_float(behind) / whole


def is_before(step: Count, boundary: Count) -> jax.Array:
    """Return whether a step comes before a boundary."""
    now, boundary = common_dtype(step, boundary)
    return now < boundary


def mix(
    weight: jax.Array, value: Scalar, other_weight: jax.Array, other: Scalar
) -> jax.Array:
    """Return the weighted sum of two values; weights of 1 and 0 give exactly one."""
    return weight * numerics.hyper(value) + other_weight * numerics.hyper(other)


def half_cosine(ahead: jax.Array) -> jax.Array:
    r"""Return $(1 + \cos \pi f) / 2$ as $\sin^2(\pi (1 - f) / 2)$: no cancellation."""
    return jnp.sin(np.pi / 2 * ahead) ** 2


def rise_to(step: Count, first: Scalar, peak: Scalar, steps: Count) -> jax.Array:
    """Return the straight line from ``first`` at step 0 to ``peak`` after ``steps``."""
    ahead, behind = progress(step, 0, steps)
    return mix(ahead, first, behind, peak)


def check_values(**values: Any) -> None:
    """Raise if a number is NaN."""
    for name, value in values.items():
        numerics.check_number(name, value)


def check_counts(low: int, **counts: Any) -> None:
    """Raise if a count that is a number is below ``low``."""
    for name, count in counts.items():
        numerics.check_number(name, count, low=low)
