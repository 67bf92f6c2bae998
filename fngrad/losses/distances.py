"""Losses of whole vectors: distributions and directions.

The keywords that all losses share are explained in `fngrad.losses`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    class_axes,
    excess_over_log,
    float_pair,
    keep,
    make_masks,
    reduce,
    slopes_of,
    times,
)
from fngrad.types import Scalar


def kl_divergence(
    log_predictions: Array,
    targets: Array,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the divergence of a prediction from a distribution, in nats.

    $$\mathrm{KL}(q \,\|\, p) = \sum_k q_k (\log q_k - \log p_k), \qquad 0 \log 0 = 0$$

    Args:
        log_predictions: $\log p$, shape ``(..., classes)``.
        targets: $q$, of the same shape, >= 0, summing to 1 over the classes.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating, or the targets are complex.
        ValueError: if shapes do not fit, there is no axis, or the reduction is unknown.
    """
    log_p, q = float_pair(("log_predictions", "targets"), log_predictions, targets)
    axes = class_axes(axis, log_p.ndim)
    masks = make_masks(where, weights, log_p.shape, axes)
    log_p, q = keep(masks.entry, log_p, -jnp.inf), keep(masks.entry, q)
    loss = keep(masks.example, _divergence(axes)(log_p, q))
    return reduce(loss, masks.example, weights, reduction)


def kl_divergence_with_log_targets(
    log_predictions: Array,
    log_targets: Array,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return `kl_divergence` to a distribution given by its logarithms, in nats.

    $$\mathrm{KL}(q \,\|\, p) = \sum_k q_k (\log q_k - \log p_k)$$

    Its targets can be the ``log_softmax`` of another model's logits.

    Args:
        log_predictions: $\log p$, shape ``(..., classes)``.
        log_targets: $\log q$, of the same shape; ``-inf`` is an impossible class.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating, or the targets are complex.
        ValueError: if shapes do not fit, there is no axis, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf])
        >>> print(losses.kl_divergence_with_log_targets(p, q))
        0.6931472
    """
    names = ("log_predictions", "log_targets")
    log_p, log_q = float_pair(names, log_predictions, log_targets)
    axes = class_axes(axis, log_p.ndim)
    masks = make_masks(where, weights, log_p.shape, axes)
    q = jnp.exp(keep(masks.entry, log_q, -jnp.inf))
    log_p = keep(masks.entry, log_p, -jnp.inf)
    loss = keep(masks.example, _divergence(axes)(log_p, q))
    return reduce(loss, masks.example, weights, reduction)


def cosine_distance(
    predictions: Array,
    targets: Array,
    *,
    epsilon: Scalar = 0.0,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return one minus the cosine of the angle between two vectors, in [0, 2].

    $$1 - \frac{x \cdot y}{n(x)\,n(y)}, \qquad
      n(x) = \sqrt{\max(\lVert x \rVert^2,\ \epsilon)}$$

    Args:
        predictions: $x$, shape ``(..., coordinates)``.
        targets: $y$, of the same shape.
        epsilon: $\epsilon$, >= 0, the least *squared* norm to divide by. A vector of
            zeros is at distance 1 from everything, with zero gradient.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating, or the targets are complex.
        ValueError: if shapes do not fit, there is no axis, the reduction is unknown, or
            epsilon is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> x, y = jnp.array([1.0, 0.0]), jnp.array([[0.0, 2.0], [-3.0, 0.0]])
        >>> print(losses.cosine_distance(jnp.stack([x, x]), y))
        [1. 2.]
    """
    numerics.check_number("epsilon", epsilon, low=0.0)
    x, y = float_pair(("predictions", "targets"), predictions, targets)
    axes = class_axes(axis, x.ndim)
    masks = make_masks(where, weights, x.shape, axes)
    least = jnp.sqrt(numerics.hyper(epsilon).astype(x.dtype))
    x, y = keep(masks.entry, x), keep(masks.entry, y)
    loss = keep(masks.example, _half_square_between(x, y, axes, least))
    return reduce(loss, masks.example, weights, reduction)


def _divergence(axes: tuple[int, ...]) -> Callable[..., jax.Array]:
    def plain(log_p: jax.Array, q: jax.Array) -> jax.Array:
        log_q = jnp.log(jnp.where(q == 0, 1, q))
        return jnp.sum(times(q, log_q - log_p), axis=axes)

    @slopes_of(plain)
    def divergence(log_p: jax.Array, q: jax.Array) -> jax.Array:
        r"""Return $\sum (p - q - q \log(p / q)) + \sum (q - p)$, of which none cancels.

        The first terms are >= 0. The last sum is zero for distributions; where it is
        no more than the rounding of p and q, it is left out.
        """
        p, log_q = jnp.exp(log_p), jnp.log(jnp.where(q == 0, 1, q))
        r = numerics.divide(p - q, q)
        is_near = (jnp.abs(r) <= 0.5) & (q != 0)
        near = q * excess_over_log(jnp.where(is_near, r, 0))
        far = (p - q) + times(q, log_q - log_p)
        distance = jnp.sum(jnp.where(is_near, near, far), axis=axes)
        mass = jnp.sum(q - p, axis=axes)
        size = p * (1 + jnp.where(p == 0, 0, jnp.abs(log_p))) + q
        rounding = 8 * jnp.finfo(p.dtype).eps * jnp.sum(size, axis=axes)
        is_rounding = (jnp.abs(mass) <= rounding) & (distance <= 100 * rounding)
        return distance + jnp.where(is_rounding, 0, mass)

    return divergence


class _Direction(NamedTuple):
    vector: jax.Array  # scaled by a power of two, so that its squares fit
    norm: jax.Array  # its norm, or the scaled ``least`` if that is larger
    unit: jax.Array  # vector / norm
    slack: jax.Array  # (1 - |unit|**2) / 2, more than 0 only below the least norm
    is_floored: jax.Array


def _direction(x: jax.Array, axes: tuple[int, ...], least: jax.Array) -> _Direction:
    size = numerics.largest(jnp.abs(x), axes, keepdims=True, initial=0)
    is_zero = size == 0
    scale = numerics.power_of_two_below(size / 2)
    x, least = jnp.where(is_zero, 0, x / scale), least / scale
    square = jnp.sum(jnp.square(x), axis=axes, keepdims=True)
    length = jnp.sqrt(jnp.where(is_zero, 1, square))
    is_floored = is_zero | (length < least)
    norm = jnp.where(is_zero, 1, jnp.maximum(length, least))
    share = jnp.where(is_zero, 0, length / norm)
    slack = jnp.where(is_floored, (1 - share) * (1 + share) / 2, 0)
    return _Direction(x, norm, x / norm, slack, is_floored)


def _half_square_between(
    x: jax.Array, y: jax.Array, axes: tuple[int, ...], least: jax.Array
) -> jax.Array:
    r"""Return $1 - u \cdot v$ as $|u - v|^2 / 2$ plus the slack of u and of v.

    With d = x - y and $\delta = |x| - |y| = d \cdot (x + y) / (|x| + |y|)$,
    $u - v = (d - \delta v) / |x|$, which keeps the digits of d.
    """
    a, b = _direction(x, axes, least), _direction(y, axes, least)
    is_plain = a.is_floored | b.is_floored
    d = a.vector - b.vector
    along = jnp.sum(d * (a.vector + b.vector), axis=axes, keepdims=True)
    delta = jnp.where(is_plain, 0, along / (a.norm + b.norm))
    gap = jnp.where(is_plain, a.unit - b.unit, (d - delta * b.unit) / a.norm)
    square = jnp.sum(jnp.square(gap), axis=axes)
    return square / 2 + jnp.squeeze(a.slack + b.slack, axes)
