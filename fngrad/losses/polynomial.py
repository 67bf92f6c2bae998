r"""The cross-entropy as a series in $1 - p$, with another first coefficient.

The keywords that all losses share are explained in `fngrad.losses`.
"""

import jax

import fngrad.numerics as numerics
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
from fngrad.losses.softmax import cross_entropy, missing_probability
from fngrad.types import Scalar


def poly_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    epsilon: Scalar = 2.0,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the cross-entropy plus a multiple of the probability that is missing.

    $$\sum_k y_k \left(-\log p_k + \epsilon\,(1 - p_k)\right), \qquad
      p = \mathrm{softmax}(x)$$

    Args:
        logits: $x$, shape ``(..., classes)``; ``-inf`` is an impossible class.
        labels: $y$, of the same shape, >= 0, summing to 1 over the classes. Of integer
            labels pass ``jax.nn.one_hot``.
        epsilon: $\epsilon$, >= -1; at 0 it is `softmax_cross_entropy`, at -1 the
            series lacks its first term.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the logits are not floating, or the labels are complex.
        ValueError: if shapes do not fit, there is no axis, the reduction is unknown, or
            epsilon is below -1.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> loss = losses.poly_cross_entropy(jnp.zeros(2), jnp.array([1.0, 0.0]))
        >>> print(f"{loss:.4f}")
        1.6931

    References:
        Leng et al., PolyLoss: a polynomial expansion perspective of classification loss
        functions, 2022, https://arxiv.org/abs/2204.12511, equation 4.
    """
    numerics.check_number("epsilon", epsilon, low=-1.0)
    x, y = float_pair(("logits", "labels"), logits, labels)
    axes = class_axes(axis, x.ndim)
    masks = make_masks(where, weights, x.shape, axes)
    x, y = keep_classes(masks, axes, x), keep(masks.entry, y)
    missing = missing_probability(axes, x, y)
    factor = numerics.hyper(epsilon).astype(x.dtype)
    loss = keep(masks.example, cross_entropy(axes, x, y) + factor * missing)
    return reduce(loss, masks.example, weights, reduction)
