"""Metrics of classes, from logits and integer labels."""

from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.metrics.accumulators import CalibrationError, ConfusionMatrix, Mean
from fngrad.metrics.derived import Derived
from fngrad.metrics.examples import mask_and_weights, mean_of, wide
from fngrad.metrics.sums import Pair, pair_of_sum, sums_by_index


def accuracy(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None
) -> Mean:
    """Measure how often the largest logit is the label's.

    Args:
        logits: floats, shape ``(..., classes)``; of equal ones the first counts.
        labels: integers in [0, classes), shape ``(...)``.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: if labels are not integers, the mask is not bool, or numbers are
            complex.
        ValueError: if shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import metrics
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0]])
        >>> print(metrics.accuracy(logits, jnp.array([0, 0])).value())
        0.5
    """
    return top_k_accuracy(logits, labels, 1, where=where, weights=weights)


def top_k_accuracy(
    logits: Any, labels: Any, k: int, *, where: Any = None, weights: Any = None
) -> Mean:
    """Measure how often the label's logit is among the k largest.

    Args:
        logits: floats, shape ``(..., classes)``; of equal ones the first count.
        labels: integers in [0, classes), shape ``(...)``.
        k: 1 <= k <= classes.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: if labels are not integers, the mask is not bool, or numbers are
            complex.
        ValueError: if shapes do not fit, or k is out of range.
    """
    x, y, w = _classified(logits, labels, where, weights)
    k = numerics.check_count("k", k)
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"need 1 <= k <= {x.shape[-1]} classes, got {k=}")
    return mean_of(_rank_is_below(k, x, y), w)


def log_loss(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None
) -> Mean:
    r"""Measure the cross-entropy $-\log \mathrm{softmax}(x)_y$, in nats.

    Args:
        logits: $x$, floats, shape ``(..., classes)``.
        labels: $y$, integers in [0, classes), shape ``(...)``.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: if labels are not integers, the mask is not bool, or numbers are
            complex.
        ValueError: if shapes do not fit.
    """
    x, y, w = _classified(logits, labels, where, weights)
    return mean_of(_pick(numerics.surprise(x, (x.ndim - 1,)), y), w)


def calibration_error(
    logits: Any,
    labels: Any,
    *,
    num_bins: int = 15,
    where: Any = None,
    weights: Any = None,
) -> CalibrationError:
    r"""Measure how far confidence is from accuracy: the expected calibration error.

    $$\sum_b \frac{n_b}{n}\,|\mathrm{accuracy}_b - \mathrm{confidence}_b|$$

    over the bins $((b - 1)/B,\ b/B]$ of the largest probability.

    Args:
        logits: floats, shape ``(..., classes)``.
        labels: integers in [0, classes), shape ``(...)``.
        num_bins: $B$, >= 1.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: if labels are not integers, the mask is not bool, or numbers are
            complex.
        ValueError: if shapes do not fit, or ``num_bins < 1``.

    References:
        Guo et al., On calibration of modern neural networks, 2017,
        https://arxiv.org/abs/1706.04599, equation 3.
    """
    num_bins = numerics.check_count("num_bins", num_bins, 1)
    x, y, w = _classified(logits, labels, where, weights)
    confidence = numerics.largest(jax.nn.softmax(x), axis=-1)
    is_right = _rank_is_below(1, x, y)
    bins = jnp.clip(jnp.ceil(confidence * num_bins) - 1, 0, num_bins - 1)
    bins = jax.nn.one_hot(bins.astype(jnp.int32), num_bins, dtype=x.dtype)
    axes = tuple(range(y.ndim))

    def per_bin(values: jax.Array) -> Pair:
        return pair_of_sum(bins * (w * values)[..., None], axes)

    measured = (jnp.ones_like(confidence), confidence, is_right)
    sums = [per_bin(values) for values in measured]
    (weight, confidence, correct), rest = zip(*sums, strict=True)
    return CalibrationError(weight, confidence, correct, rest)


def maximum_calibration_error(
    logits: Any,
    labels: Any,
    *,
    num_bins: int = 15,
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure the largest distance of confidence from accuracy over the bins.

    $$\max_b\,|\mathrm{accuracy}_b - \mathrm{confidence}_b|$$

    over the bins of `calibration_error` that are not empty.

    Args:
        logits: floats, shape ``(..., classes)``.
        labels: integers in [0, classes), shape ``(...)``.
        num_bins: >= 1.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: as `calibration_error`.
        ValueError: as `calibration_error`.

    References:
        Guo et al., On calibration of modern neural networks, 2017,
        https://arxiv.org/abs/1706.04599, equation 5.
    """
    bins = calibration_error(
        logits, labels, num_bins=num_bins, where=where, weights=weights
    )
    return Derived(bins, _largest_gap)


def _largest_gap(bins: CalibrationError) -> jax.Array:
    weight = bins.weight + bins.rest[0]
    gaps = bins.confidence - bins.correct + (bins.rest[1] - bins.rest[2])
    largest = numerics.largest(jnp.abs(numerics.divide(gaps, weight)))
    return jnp.where(jnp.any(weight != 0), largest, jnp.nan)


def confusion_matrix(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None
) -> ConfusionMatrix:
    """Count how often each class was predicted for each true class.

    Args:
        logits: floats, shape ``(..., classes)``; the largest is the prediction.
        labels: integers in [0, classes), shape ``(...)``.
        where, weights: see `fngrad.metrics`.

    Returns:
        Counts of shape (true class, predicted class); all NaN if a label is out of
        range or a logit is NaN.

    Raises:
        TypeError: if labels are not integers, the mask is not bool, or numbers are
            complex.
        ValueError: if shapes do not fit.
    """
    x, y, w = _classified(logits, labels, where, weights)
    classes = x.shape[-1]
    cell = jnp.maximum(y, 0) * classes + jnp.argmax(x, -1).astype(y.dtype)
    is_wrong = jnp.any(jnp.isnan(x), axis=-1) | (y < 0)
    values = None if weights is None else w.reshape(-1)
    sums = sums_by_index(values, cell.reshape(-1), w.reshape(-1) != 0, classes**2)
    counts, rest = (x.astype(w.dtype).reshape(classes, classes) for x in sums)
    return ConfusionMatrix(jnp.where(jnp.any(is_wrong), jnp.nan, counts), (rest,))


def _classified(
    logits: Any, labels: Any, where: Any, weights: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return logits, labels and weights; -1 is a label out of range."""
    x = wide("logits", logits)
    if jnp.shape(labels) == x.shape:
        raise TypeError(
            f"need integer labels (...), got {jnp.result_type(labels)}{list(x.shape)}, "
            "a value for each class: of one-hot labels pass labels.argmax(-1)"
        )
    y = numerics.integers("labels", labels)
    if x.ndim < 1 or y.shape != x.shape[:-1]:
        raise ValueError(
            f"need logits (..., classes) and labels (...), got {x.shape} and {y.shape}"
        )
    mask, w = mask_and_weights(where, weights, y.shape, x.dtype)
    if mask is not None:
        x, y = jnp.where(mask[..., None], x, 0), jnp.where(mask, y, 0)
    return x, jnp.where((y >= 0) & (y < x.shape[-1]), y, -1), w


def _pick(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return x at each label; NaN for labels out of range."""
    index = jnp.maximum(y, 0)[..., None]
    picked = jnp.take_along_axis(x, index, axis=-1)[..., 0]
    return jnp.where(y < 0, jnp.nan, picked)


def _rank_is_below(k: int, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return 1 where fewer than k classes are ahead of the label's, NaN without one.

    A class that cannot be compared, because one of the logits is NaN, is ahead.
    """
    own = _pick(x, y)[..., None]
    comes_later = jax.lax.broadcasted_iota(y.dtype, x.shape, x.ndim - 1) >= y[..., None]
    is_behind = (own > x) | ((own == x) & comes_later)
    is_right = jnp.sum(~is_behind, axis=-1) < k
    return jnp.where(y < 0, jnp.nan, is_right.astype(x.dtype))
