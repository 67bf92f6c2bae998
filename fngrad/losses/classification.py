"""Losses of classes: dense or integer labels, exclusive or independent classes.

The keywords that all losses share are explained in `fngrad.losses`.
"""

import math
from numbers import Real

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.programs.reasons_of_nans as reasons_of_nans
from fngrad.losses.core import (
    Array,
    Axis,
    Masks,
    Reduction,
    check_labels,
    check_smoothing,
    class_axes,
    float_pair,
    floats,
    is_moving,
    keep,
    keep_classes,
    make_masks,
    reduce,
    reduce_entries,
    times,
)
from fngrad.losses.softmax import (
    cross_entropy,
    cross_entropy_of_index,
    pick,
    sigmoid,
    softplus,
)
from fngrad.types import Scalar


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
    label_smoothing: Scalar = 0.0,
) -> jax.Array:
    r"""Return the cross-entropy to a distribution over exclusive classes, in nats.

    $$-\sum_k y_k \log p_k, \qquad p = \mathrm{softmax}(x)$$

    Args:
        logits: $x$, shape ``(..., classes)``; ``-inf`` is an impossible class.
        labels: $y$, of the same shape, >= 0, summing to 1 over the classes.
        axis, where, weights, reduction, label_smoothing: see `fngrad.losses`.

    Raises:
        TypeError: if the logits are not floating.
        ValueError: if shapes do not fit, there is no axis, the reduction is unknown, or
            smoothing is outside [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> logits = jnp.array([0.0, 0.0, -jnp.inf])
        >>> print(losses.softmax_cross_entropy(logits, jnp.array([1.0, 0.0, 0.0])))
        0.6931472
    """
    check_smoothing(label_smoothing)
    x, y = float_pair(("logits", "labels"), logits, labels)
    axes = class_axes(axis, x.ndim)
    masks = make_masks(where, weights, x.shape, axes)
    x, y = keep_classes(masks, axes, x), keep(masks.entry, y)
    if not _is_off(label_smoothing):
        y = keep(masks.entry, _smooth(y, label_smoothing, _count(masks, x, axes)))
    loss = keep(masks.example, cross_entropy(axes, x, y))
    return reduce(loss, masks.example, weights, reduction)


def softmax_cross_entropy_with_integer_labels(
    logits: Array,
    labels: Array,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
    label_smoothing: Scalar = 0.0,
) -> jax.Array:
    r"""Return $-\log p_y$ with $p = \mathrm{softmax}(x)$, in nats.

    Args:
        logits: $x$, shape ``(..., classes)``; ``-inf`` is an impossible class.
        labels: $y$, integers in [0, classes), shaped like the logits without their
            axis of classes.
        axis: the axis of the classes, one.
        where, weights, reduction, label_smoothing: see `fngrad.losses`.

    Raises:
        TypeError: if the logits are not floating or the labels not integers.
        ValueError: if shapes do not fit, there is more than one axis, the reduction is
            unknown, smoothing is outside [0, 1), or a concrete label is outside
            [0, classes). A traced one (under ``jit``) gives NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> logits, labels = jnp.zeros((2, 4)), jnp.array([0, 3])
        >>> print(losses.softmax_cross_entropy_with_integer_labels(logits, labels))
        [1.3862944 1.3862944]
    """
    check_smoothing(label_smoothing)
    x = floats("logits", logits)
    masks, axis, index, is_wrong = _integer_labels(x, labels, axis, where, weights)
    x = keep_classes(masks, (axis,), x)
    loss = keep(masks.example, cross_entropy_of_index(axis, x, index))
    if not _is_off(label_smoothing):
        alpha = numerics.hyper(label_smoothing).astype(x.dtype)
        uniform = jnp.broadcast_to(alpha / _count(masks, x, (axis,)), x.shape)
        uniform = keep(masks.entry, uniform)
        loss = (1 - alpha) * loss + cross_entropy((axis,), x, uniform)
    return reduce(_spoil(loss, is_wrong), masks.example, weights, reduction)


def sigmoid_binary_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
    label_smoothing: Scalar = 0.0,
) -> jax.Array:
    r"""Return the cross-entropy of independent yes-or-no classes, in nats.

    $$-y \log \sigma(x) - (1 - y) \log (1 - \sigma(x))$$

    Args:
        logits: $x$, floats; infinite ones are certain.
        labels: $y$, in [0, 1], of the same shape; integers and bools will do.
        axis, where, weights, reduction: see `fngrad.losses`.
        label_smoothing: see `fngrad.losses`, with $K = 2$.

    Raises:
        TypeError: if the logits are not floating.
        ValueError: if shapes do not fit, the reduction is unknown, or smoothing is
            outside [0, 1).
    """
    check_smoothing(label_smoothing)
    pair = float_pair(("logits", "labels"), logits, labels)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return _binary_cross_entropy(x, _smooth_binary(y, label_smoothing))

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


def focal(
    logits: Array,
    labels: Array,
    *,
    alpha: Scalar | None = None,
    gamma: Scalar = 2.0,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
    label_smoothing: Scalar = 0.0,
) -> jax.Array:
    r"""Return the sigmoid focal loss, which down-weights well-classified examples.

    $$\alpha_t\,(1 - p_t)^\gamma\,\mathrm{BCE}(x, y), \qquad
      1 - p_t = y\,\sigma(-x) + (1 - y)\,\sigma(x), \quad
      \alpha_t = \alpha y + (1 - \alpha)(1 - y)$$

    Args:
        logits: $x$, floats.
        labels: $y$, in [0, 1], of the same shape.
        alpha: $\alpha$, the weight of label 1, in [0, 1]; ``None`` for no weights.
        gamma: $\gamma$, >= 0 and finite; at 0 it is `sigmoid_binary_cross_entropy`.
        axis, where, weights, reduction: see `fngrad.losses`.
        label_smoothing: see `fngrad.losses`, with $K = 2$.

    Raises:
        TypeError: if the logits are not floating.
        ValueError: if shapes do not fit, the reduction is unknown, or a number is out
            of range.

    References:
        Lin et al., Focal loss for dense object detection, 2017,
        https://arxiv.org/abs/1708.02002, equation 5.
    """
    check_smoothing(label_smoothing)
    numerics.check_number("alpha", alpha, low=0.0, high=1.0, optional=True)
    numerics.check_number("gamma", gamma, 0.0, float(jnp.finfo(jnp.float32).max))
    pair = float_pair(("logits", "labels"), logits, labels)
    power = numerics.hyper(gamma).astype(pair[0].dtype)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        y = _smooth_binary(y, label_smoothing)
        miss = y * sigmoid(-x) + (1 - y) * sigmoid(x)
        hit = y * sigmoid(x) + (1 - y) * sigmoid(-x)
        loss = times(_power(miss, hit, power), _binary_cross_entropy(x, y))
        if alpha is None:
            return loss
        a = numerics.hyper(alpha).astype(x.dtype)
        return (a * y + (1 - a) * (1 - y)) * loss

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


def hinge(
    predictor_outputs: Array,
    targets: Array,
    *,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return $\max(0,\ 1 - x\,y)$, the loss of a maximal margin.

    Args:
        predictor_outputs: $x$, floats.
        targets: $y$, -1 or 1, of the same shape.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the outputs are not floating.
        ValueError: if shapes do not fit, or the reduction is unknown.
    """
    names = ("predictor_outputs", "targets")
    pair = float_pair(names, predictor_outputs, targets)

    return reduce_entries(
        lambda x, y: jnp.maximum(1 - x * y, 0), pair, axis, where, weights, reduction
    )


def multiclass_hinge(
    scores: Array,
    labels: Array,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return $\max_k (x_k + [k \ne y]) - x_y$, the margin over the best other class.

    Args:
        scores: $x$, shape ``(..., classes)``.
        labels: $y$, integers in [0, classes), shaped like the scores without their
            axis of classes.
        axis: the axis of the classes, one.
        where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the scores are not floating or the labels not integers.
        ValueError: as in `softmax_cross_entropy_with_integer_labels`.

    References:
        Crammer and Singer, On the algorithmic implementation of multiclass
        kernel-based vector machines, 2001,
        https://jmlr.org/papers/v2/crammer01a.html.
    """
    x = floats("scores", scores)
    masks, axis, index, is_wrong = _integer_labels(x, labels, axis, where, weights)
    x = keep_classes(masks, (axis,), x)
    is_own = jax.nn.one_hot(index, x.shape[axis], axis=axis, dtype=bool)
    # Subtracted first, a margin of 1 is not rounded away beside large scores.
    ahead = x - jnp.expand_dims(pick(x, index, axis), axis)
    loss = numerics.largest(jnp.where(is_own, 0, ahead + 1), axis)
    loss = keep(masks.example, loss)
    return reduce(_spoil(loss, is_wrong), masks.example, weights, reduction)


def smooth_labels(labels: Array, alpha: Scalar, *, axis: Axis = -1) -> jax.Array:
    r"""Return $(1 - \alpha)\,y + \alpha / K$ with $K$ the number of classes.

    Args:
        labels: $y$, floats, a distribution over the classes.
        alpha: $\alpha$, in [0, 1).
        axis: the axis or axes of the classes.

    Raises:
        TypeError: if the labels are not floating.
        ValueError: if ``alpha`` is out of range, or there is no axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> print(losses.smooth_labels(jnp.array([1.0, 0.0]), 0.1))
        [0.95 0.05]
    """
    check_smoothing(alpha)
    y = floats("labels", labels)
    axes = class_axes(axis, y.ndim)
    return _smooth(y, alpha, _count(Masks(None, None), y, axes))


def _is_off(label_smoothing: Scalar) -> bool:
    return isinstance(label_smoothing, Real) and float(label_smoothing) == 0


def _smooth(y: jax.Array, alpha: Scalar, count: jax.Array) -> jax.Array:
    alpha = numerics.hyper(alpha).astype(y.dtype)
    return (1 - alpha) * y + alpha / count


def _smooth_binary(y: jax.Array, alpha: Scalar) -> jax.Array:
    return y if _is_off(alpha) else _smooth(y, alpha, jnp.full((), 2, y.dtype))


def _count(masks: Masks, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return how many classes each example has, with the axes kept."""
    if masks.entry is None:
        return jnp.full((), math.prod(x.shape[a] for a in axes), x.dtype)
    count = jnp.sum(masks.entry, axis=axes, keepdims=True)
    return jnp.maximum(count, 1).astype(x.dtype)


def _integer_labels(
    x: jax.Array,
    labels: Array,
    axis: Axis,
    where: Array | None,
    weights: Array | None,
) -> tuple[Masks, int, jax.Array, jax.Array]:
    """Return the masks, the axis of classes, indices to read, and which have none."""
    axes = class_axes(axis, x.ndim)
    if len(axes) != 1:
        raise ValueError(f"need one axis of classes for integer labels, got {axis=}")
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if jnp.shape(labels) == x.shape:
        raise TypeError(
            f"need integer labels of shape {shape}, got {jnp.result_type(labels)}"
            f"{list(x.shape)}, a value for each class: softmax_cross_entropy takes "
            f"one-hot labels and probabilities, labels.argmax({axes[0]}) are integers"
        )
    classes = x.shape[axes[0]]
    masks = make_masks(where, weights, x.shape, axes)
    labels = check_labels(labels, shape, classes, masks.example)
    is_valid = (labels >= 0) & (labels < classes)
    index = jnp.where(is_valid, labels, 0)
    if masks.entry is not None and masks.example is not None:
        is_valid &= pick(masks.entry, index, axes[0])
        is_valid |= ~masks.example
    return masks, axes[0], index, ~is_valid


def _spoil(loss: jax.Array, is_wrong: jax.Array) -> jax.Array:
    """Make the losses of wrong examples NaN, and their gradients."""
    with jax.named_scope(reasons_of_nans.LABEL):
        return loss * jnp.where(is_wrong, jnp.nan, 1).astype(loss.dtype)


def _power(base: jax.Array, lack: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return base ** exponent, where lack = 1 - base has digits that the base lost."""
    is_small = lack < 0.5
    log = jnp.log1p(-jnp.where(is_small, lack, 0))
    return jnp.where(is_small, jnp.exp(exponent * log), numerics.power(base, exponent))


@jax.custom_jvp
def _binary_cross_entropy(x: jax.Array, y: jax.Array) -> jax.Array:
    return times(y, softplus(-x)) + times(1 - y, softplus(x))


def _binary_cross_entropy_jvp(
    primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, y), (x_dot, y_dot) = primals, tangents
    tangent = jnp.zeros_like(x)
    if is_moving(x_dot):
        # The probability minus y: near 1/2 and near 0 and 1 by what does not cancel.
        near = jnp.tanh(x / 2) / 2 + (0.5 - y)
        far = (1 - y) * sigmoid(x) - y * sigmoid(-x)
        tangent += jnp.where(jnp.abs(x) < 1, near, far) * x_dot
    if is_moving(y_dot):
        tangent -= jnp.where(jnp.isinf(x), 0, x) * y_dot
    return _binary_cross_entropy(x, y), tangent


_binary_cross_entropy.defjvp(_binary_cross_entropy_jvp, symbolic_zeros=True)
