"""The loss of sparse probabilities, which are 0 for classes far below the largest.

The keywords that all losses share are explained in `fngrad.losses`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    class_axes,
    float_pair,
    keep,
    keep_classes,
    make_masks,
    reduce,
    times,
)
from fngrad.numerics.simplex import above_threshold


def sparsemax(
    logits: Array,
    labels: Array,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return how far the labels are from the simplex's point nearest to the logits.

    $$\tfrac12 \lVert p - y \rVert^2 + \sum_{x_k < \tau} y_k (\tau - x_k), \qquad
      p = \max(x - \tau, 0)$$

    with $\tau$ such that $p$ sums to 1. The gradient is $p - y$. It is 0 as soon as
    the label's logit is 1 above all others.

    Args:
        logits: $x$, floats, shape ``(..., classes)``; ``-inf`` is an impossible class.
        labels: $y$, of the same shape, >= 0, summing to 1 over the classes. Of integer
            labels pass ``jax.nn.one_hot``.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the logits are not floating, or the labels are complex.
        ValueError: if shapes do not fit, there is no axis, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> x, y = jnp.array([[2.0, 1.0], [0.0, 0.0]]), jnp.array([[1, 0], [1, 0]])
        >>> print(losses.sparsemax(x, y))
        [0.   0.25]

    References:
        Martins and Astudillo, From softmax to sparsemax: a sparse model of attention
        and multi-label classification, 2016, https://arxiv.org/abs/1602.02068,
        algorithm 1 and equation 28, written so that nothing cancels.
    """
    x, y = float_pair(("logits", "labels"), logits, labels)
    axes = class_axes(axis, x.ndim)
    masks = make_masks(where, weights, x.shape, axes)
    x, y = keep_classes(masks, axes, x), keep(masks.entry, y)
    loss = keep(masks.example, _loss(*(_classes_last(a, axes) for a in (x, y))))
    return reduce(loss, masks.example, weights, reduction)


def _classes_last(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    outer = [n for i, n in enumerate(x.shape) if i not in axes]
    return jnp.moveaxis(x, axes, range(len(outer), x.ndim)).reshape(*outer, -1)


@jax.custom_jvp
def _loss(x: jax.Array, y: jax.Array) -> jax.Array:
    above = above_threshold(x)
    gap = jnp.maximum(above, 0) - y
    below = jnp.maximum(-above, 0)
    return jnp.sum(0.5 * gap * gap + times(y, below), axis=-1)


@_loss.defjvp
def _loss_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
    (x, y), (x_dot, y_dot) = primals, tangents
    above = above_threshold(x)
    by_label = y - jnp.where(jnp.isinf(above), 0, above)
    slope = (jnp.maximum(above, 0) - y) * x_dot + by_label * y_dot
    return _loss(x, y), jnp.sum(slope, axis=-1)
