"""Losses of whole vectors: distributions and directions.

The keywords that all losses share are explained in `fngrad.losses`.
"""

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    class_axes,
    float_pair,
    keep,
    make_masks,
    reduce,
    reduce_entries,
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
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit, no axis, or an unknown reduction.
    """
    names = ("log_predictions", "targets")
    pair = float_pair(names, log_predictions, targets)
    axes = class_axes(axis, pair[0].ndim)

    def entry_loss(log_p: jax.Array, q: jax.Array) -> jax.Array:
        log_q = jnp.log(jnp.where(q == 0, 1, q))
        return times(q, log_q - log_p)

    return reduce_entries(entry_loss, pair, axes, where, weights, reduction)


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
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit, no axis, an unknown reduction, or a
            negative epsilon.

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
    x = _unit(keep(masks.entry, x), axes, least)
    y = _unit(keep(masks.entry, y), axes, least)
    loss = keep(masks.example, 1 - jnp.sum(x * y, axis=axes))
    return reduce(loss, masks.example, weights, reduction)


def _unit(x: jax.Array, axes: tuple[int, ...], least: jax.Array) -> jax.Array:
    """Return x / max(norm, least); dividing by the size first, no square overflows."""
    size = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
    is_zero = size == 0
    size = jnp.where(is_zero, 1, size)
    x = x / size
    square = jnp.sum(tree.abs_square(x), axis=axes, keepdims=True)
    norm = jnp.sqrt(jnp.where(is_zero, 1, square))
    return jnp.where(is_zero, 0, x / jnp.maximum(norm, least / size))
