r"""Losses of the overlap of sets, such as the pixels of a segment.

An example is one set: ``axis`` are the axes of its pixels. With $p = \sigma(x)$,

$$\mathrm{TP} = \sum_k p_k y_k, \quad \mathrm{FN} = \sum_k (1 - p_k)\,y_k, \quad
  \mathrm{FP} = \sum_k p_k (1 - y_k).$$

The keywords that all losses share are explained in `fngrad.losses`.
"""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    class_axes,
    float_pair,
    keep,
    make_masks,
    reduce,
)
from fngrad.losses.softmax import sigmoid
from fngrad.types import Scalar


def dice(
    logits: Array,
    labels: Array,
    *,
    smooth: Scalar = 1.0,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return one minus the overlap of a predicted set with its label, in [0, 1].

    $$1 - \frac{2\,\mathrm{TP} + s}{2\,\mathrm{TP} + \mathrm{FN} + \mathrm{FP} + s}$$

    Args:
        logits: $x$, floats, of which `sigmoid` makes probabilities.
        labels: $y$, in [0, 1], of the same shape; integers and bools will do.
        smooth: $s$, >= 0: with 0 an empty label has the loss 1, whatever is predicted.
        axis: the axes of one set, such as (1, 2) of images.
        where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the logits are not floating, or the labels are complex.
        ValueError: if shapes do not fit, there is no axis, the reduction is unknown, or
            ``smooth`` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> x, y = jnp.array([9.0, 9.0, -9.0, -9.0]) * 9, jnp.array([1, 0, 1, 0])
        >>> print(losses.dice(x, y, smooth=0.0))
        0.5

    References:
        Milletari, Navab and Ahmadi, V-Net, 2016, https://arxiv.org/abs/1606.04797,
        section 3. Differs from it in: the denominator has no squares, and it is smooth.
    """
    half = numerics.hyper(0.5)
    return _overlap_loss(
        logits,
        labels,
        (half, half, half),
        smooth,
        None,
        axis,
        where,
        weights,
        reduction,
    )


def focal_tversky(
    logits: Array,
    labels: Array,
    *,
    alpha: Scalar = 0.7,
    gamma: Scalar = 0.75,
    smooth: Scalar = 1.0,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return a power of one minus the Tversky index, in [0, 1].

    $$\left(1 - \frac{\mathrm{TP} + s}{\mathrm{TP} + \alpha\,\mathrm{FN} +
      (1 - \alpha)\,\mathrm{FP} + s}\right)^{\gamma}$$

    Args:
        logits: $x$, floats, of which `sigmoid` makes probabilities.
        labels: $y$, in [0, 1], of the same shape; integers and bools will do.
        alpha: $\alpha$, in [0, 1]: above 1/2 what is missed costs more than what is
            found without being there.
        gamma: $\gamma$, > 0 and finite: below 1 small losses have large slopes; at 1 it
            is the Tversky loss.
        smooth: $s$, >= 0.
        axis: the axes of one set, such as (1, 2) of images.
        where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the logits are not floating, or the labels are complex.
        ValueError: if shapes do not fit, there is no axis, the reduction is unknown, or
            a number is out of range.

    References:
        Abraham and Khan, A novel focal Tversky loss function with improved attention
        U-Net for lesion segmentation, 2018, https://arxiv.org/abs/1810.07842, equation
        4. Differs from it in: the exponent, there $1 / \gamma$ with $\gamma = 4/3$.
    """
    numerics.check_number("alpha", alpha, low=0.0, high=1.0)
    numerics.check_positive("gamma", gamma)
    numerics.check_number("gamma", gamma, high=float(jnp.finfo(jnp.float32).max))
    a, exponent = numerics.hyper(alpha), numerics.hyper(gamma)
    return _overlap_loss(
        *(logits, labels, (a, 1 - a, numerics.hyper(1.0)), smooth, exponent),
        *(axis, where, weights, reduction),
    )


def _overlap_loss(
    logits: Array,
    labels: Array,
    factors: tuple[jax.Array, jax.Array, jax.Array],
    smooth: Scalar,
    exponent: jax.Array | None,
    axis: Axis,
    where: Array | None,
    weights: Array | None,
    reduction: Reduction,
) -> jax.Array:
    """Return the loss with factors of FN, of FP and of ``smooth``."""
    numerics.check_number("smooth", smooth, low=0.0)
    x, y = float_pair(("logits", "labels"), logits, labels)
    axes = class_axes(axis, x.ndim)
    masks = make_masks(where, weights, x.shape, axes)
    x, y = keep(masks.entry, x), keep(masks.entry, y)
    of_fn, of_fp, of_smooth = (factor.astype(x.dtype) for factor in factors)
    p, q = sigmoid(x), sigmoid(-x)  # 1 - p, to every digit
    tp, fn, fp = (
        jnp.sum(keep(masks.entry, part), axis=axes)
        for part in (p * y, q * y, p * (1 - y))
    )
    missed = of_fn * fn + of_fp * fp
    constant = of_smooth * numerics.hyper(smooth).astype(x.dtype)
    # What is missed over all: one minus the overlap would cancel near 0.
    loss = numerics.divide(missed, tp + missed + constant)
    loss = loss if exponent is None else numerics.power(loss, exponent.astype(x.dtype))
    return reduce(keep(masks.example, loss), masks.example, weights, reduction)
