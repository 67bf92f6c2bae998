"""Metrics of real predictions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.metrics.accumulators import R2, Mean
from fngrad.metrics.examples import mask_and_weights, mean_of, wide
from fngrad.metrics.sums import add_pairs, pair_of, pair_of_sum


def mean_squared_error(
    predictions: Any, targets: Any, *, where: Any = None, weights: Any = None
) -> Mean:
    """Measure the mean of abs(x - y)**2 over examples and outputs.

    Args:
        predictions: x, floats or complex, shape ``(n, ...)``.
        targets: y, of the same shape.
        where, weights: see `fngrad.metrics`; of shape ``(n,)``.

    Raises:
        TypeError: if the mask is not bool, or the weights are complex.
        ValueError: if shapes do not fit.
    """
    error, w = _errors(predictions, targets, where, weights)
    return mean_of(tree.abs_square(error), w)


def mean_absolute_error(
    predictions: Any, targets: Any, *, where: Any = None, weights: Any = None
) -> Mean:
    """Measure the mean of abs(x - y) over examples and outputs.

    Args:
        predictions: x, floats or complex, shape ``(n, ...)``.
        targets: y, of the same shape.
        where, weights: see `fngrad.metrics`; of shape ``(n,)``.

    Raises:
        TypeError: if the mask is not bool, or the weights are complex.
        ValueError: if shapes do not fit.
    """
    error, w = _errors(predictions, targets, where, weights)
    is_complex = jnp.iscomplexobj(error)
    return mean_of(numerics.modulus(error) if is_complex else jnp.abs(error), w)


def mean_absolute_percentage_error(
    predictions: Any,
    targets: Any,
    *,
    epsilon: float = float(np.finfo(np.float64).eps),
    where: Any = None,
    weights: Any = None,
) -> Mean:
    r"""Measure the mean of $|x - y| / \max(|y|, \epsilon)$ over examples and outputs.

    It is a fraction: 0.5 is fifty percent.

    Args:
        predictions: $x$, floats, shape ``(n, ...)``.
        targets: $y$, of the same shape.
        epsilon: $\epsilon$, > 0, in the units of the targets.
        where, weights: see `fngrad.metrics`; of shape ``(n,)``.

    Raises:
        TypeError: if the mask is not bool, or numbers are complex.
        ValueError: if shapes do not fit, or epsilon is not above 0.

    References:
        scikit-learn has the same epsilon. Differs from Keras in: its epsilon is 1e-7,
        and its result is 100 times as large.
    """
    numerics.check_positive("epsilon", epsilon)
    x, y, w = paired(predictions, targets, where, weights)
    least = numerics.hyper(epsilon).astype(x.dtype)
    return mean_of(jnp.abs(x - y) / jnp.maximum(jnp.abs(y), least), w)


def r2(predictions: Any, targets: Any, *, where: Any = None, weights: Any = None) -> R2:
    r"""Measure the share of the targets' variance that predictions explain.

    $$R^2 = 1 - \frac{\sum_i w_i (x_i - y_i)^2}{\sum_i w_i (y_i - \bar y)^2}$$

    for each output, then the mean over outputs.

    Args:
        predictions: $x$, floats, shape ``(n, ...)``.
        targets: $y$, of the same shape.
        where, weights: see `fngrad.metrics`; of shape ``(n,)``.

    Raises:
        TypeError: if the mask is not bool, or numbers are complex.
        ValueError: if shapes do not fit.
    """
    x, y, w = paired(predictions, targets, where, weights)
    weight = pair_of_sum(w, 0)
    mean, spread = centered(y, w, weight[0])
    m2 = pair_of_sum(w * spread**2, 0)
    totals, rest = zip(weight, mean, m2, pair_of_sum(w * (x - y) ** 2, 0), strict=True)
    return R2(*totals, rest)


def _errors(
    predictions: Any, targets: Any, where: Any, weights: Any
) -> tuple[jax.Array, jax.Array]:
    """Return predictions minus targets, complex where one of them is, and weights."""
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    is_complex = jnp.iscomplexobj(predictions) or jnp.iscomplexobj(targets)
    parts = (jnp.real, jnp.imag) if is_complex else (jnp.asarray,)
    pairs = [paired(part(predictions), part(targets), where, weights) for part in parts]
    errors = [x - y for x, y, _ in pairs]
    return errors[0] if len(errors) == 1 else lax.complex(*errors), pairs[0][2]


def centered(
    x: jax.Array, w: jax.Array, weight: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Return the mean as a pair, and what is left without it.

    Equal numbers are left as exact zeros: rounding takes their mean off them, and
    between its bounds it stays.
    """
    low = jnp.min(jnp.where(w == 0, jnp.inf, x), axis=0, initial=jnp.inf)
    high = jnp.max(jnp.where(w == 0, -jnp.inf, x), axis=0, initial=-jnp.inf)
    mean = jnp.clip(numerics.divide(pair_of_sum(w * x, 0)[0], weight), low, high)
    mean = jnp.where(weight == 0, 0, mean)
    x = x - mean[None]
    error = numerics.divide(pair_of_sum(w * x, 0)[0], weight)
    return add_pairs(pair_of(mean), pair_of(error)), x - error[None]


def paired(
    predictions: Any, targets: Any, where: Any, weights: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return predictions, targets and weights, all of one shape."""
    x, y = wide("predictions", predictions), wide("targets", targets)
    if x.ndim < 1 or x.shape != y.shape:
        raise ValueError(
            "need predictions (n, ...) and targets of the same shape, "
            f"got {x.shape} and {y.shape}"
        )
    dtype = np.promote_types(x.dtype, y.dtype)  # also if promotion is strict
    mask, w = mask_and_weights(where, weights, x.shape[:1], dtype)
    inner = tuple(range(1, x.ndim))
    x, y = x.astype(dtype), y.astype(dtype)
    if mask is not None:
        mask = jnp.expand_dims(mask, inner)
        x, y = jnp.where(mask, x, 0), jnp.where(mask, y, 0)
    return x, y, jnp.broadcast_to(jnp.expand_dims(w, inner), x.shape)
