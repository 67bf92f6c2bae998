r"""Estimates of the Hessian's trace and diagonal by random vectors.

For a vector $v$ of independent signs, $\mathbb{E}\,v v^\top = I$. So $v^\top H v$ is an
unbiased estimate of the trace and $v \odot H v$ of the diagonal; both are exact where H
is diagonal. Each estimate carries the standard error of its mean.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
from fngrad.curvature.hessian_products import FlatHessian, ScalarFn, flat_hessian
from fngrad.types import Key, Params


class Estimate(NamedTuple):
    """A mean over independent samples."""

    value: Any
    standard_error: Any  # estimated standard deviation of the value, shaped like it


def trace(
    f: ScalarFn, params: Params, *args: Any, key: Key | int, num_samples: int = 64
) -> Estimate:
    r"""Estimate the trace of the Hessian, $\frac1m \sum_i v_i^\top H v_i$.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays.
        key: a typed key or a seed.
        num_samples: $m \ge 2$, one after another.

    Returns:
        Value and standard error, shape ().

    Raises:
        TypeError: if the value of ``f`` is not one float.
        ValueError: if there are fewer than two samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import curvature
        >>> estimate = curvature.trace(lambda w: 2 * jnp.sum(w**2), jnp.ones(3), key=0)
        >>> print(estimate.value, estimate.standard_error)
        12.0 0.0

    References:
        Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990,
        https://doi.org/10.1080/03610919008812866.
    """
    H = flat_hessian(f, params, *args)
    return _mean_of_samples(H, _product, key, num_samples)


def diagonal(
    f: ScalarFn, params: Params, *args: Any, key: Key | int, num_samples: int = 64
) -> Estimate:
    r"""Estimate the diagonal of the Hessian, $\frac1m \sum_i v_i \odot H v_i$.

    The variance of entry $i$ is $\frac1m \sum_{j \ne i} H_{ij}^2$.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays.
        key: a typed key or a seed.
        num_samples: $m \ge 2$, one after another.

    Returns:
        Value and standard error, trees like ``params`` in float32 or wider.

    Raises:
        TypeError: if the value of ``f`` is not one float.
        ValueError: if there are fewer than two samples.

    References:
        Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix, 2007,
        https://doi.org/10.1016/j.apnum.2007.01.003. Differs from it in: random signs,
        for which the sum of squares to divide by is m.
    """
    H = flat_hessian(f, params, *args)
    estimate = _mean_of_samples(H, lambda v, Hv: v * Hv, key, num_samples)
    return Estimate(*map(H.unravel, estimate))


def _product(v: jax.Array, Hv: jax.Array) -> jax.Array:
    return jnp.vdot(v, Hv, precision="highest")


def _mean_of_samples(
    H: FlatHessian, sample_fn: Any, key: Key | int, num_samples: int
) -> Estimate:
    num_samples = numerics.check_count("num_samples", num_samples)
    if num_samples < 2:
        raise ValueError(
            f"need num_samples >= 2 for a standard error, got {num_samples=}"
        )

    def add(moments: Any, now: Any) -> tuple[Any, None]:
        mean, squares = moments
        count, k_sample = now
        v = jax.random.rademacher(k_sample, (H.size,), H.dtype)
        x = sample_fn(v, H.apply(v))
        new_mean = mean + (x - mean) / count
        return (new_mean, squares + (x - mean) * (x - new_mean)), None

    vector = jax.ShapeDtypeStruct((H.size,), H.dtype)
    like = jax.eval_shape(sample_fn, vector, vector)
    zero = jnp.zeros(like.shape, like.dtype)
    counts = jnp.arange(1, num_samples + 1).astype(H.dtype)
    keys = jax.random.split(numerics.key(key), num_samples)
    (mean, squares), _ = lax.scan(add, (zero, zero), (counts, keys))
    return Estimate(mean, jnp.sqrt(squares / (num_samples - 1) / num_samples))
