"""Losses of ranked lists: the scores of a query's items, all at once.

The keywords that all losses share are explained in `fngrad.losses`.
"""

import jax

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
)
from fngrad.losses.softmax import cross_entropy


def ranking_softmax(
    logits: Array,
    labels: Array,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the surprise of a list's relevant items, each times its relevance.

    $$-\sum_k y_k \log \mathrm{softmax}(x)_k$$

    Args:
        logits: $x$, the scores, floats, shape ``(..., items)``.
        labels: $y$, the relevance, >= 0, of the same shape. Its sum is the list's
            weight: without relevant items the loss is 0. Over its sum it would be a
            distribution, and this `softmax_cross_entropy`.
        axis: the axis of the items.
        where: see `fngrad.losses`; items that it leaves out, such as padding, are in no
            list.
        weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the logits are not floating, or the labels are complex.
        ValueError: if shapes do not fit, there is no axis, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> x, y = jnp.zeros((2, 4)), jnp.array([[2, 0, 0, 0], [0, 0, 0, 0]])
        >>> print(losses.ranking_softmax(x, y))
        [2.7725887 0.       ]

    References:
        Cao, Qin, Liu, Tsai and Li, Learning to rank: from pairwise approach to listwise
        approach, 2007, https://doi.org/10.1145/1273496.1273513, section 4. Differs from
        it in: labels are taken as they are, not through a softmax.
    """
    x, y = float_pair(("logits", "labels"), logits, labels)
    axes = class_axes(axis, x.ndim)
    masks = make_masks(where, weights, x.shape, axes)
    x, y = keep_classes(masks, axes, x), keep(masks.entry, y)
    loss = keep(masks.example, cross_entropy(axes, x, y))
    return reduce(loss, masks.example, weights, reduction)
