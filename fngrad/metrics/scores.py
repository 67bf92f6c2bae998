r"""Metrics of the order of scores: of every threshold at once.

The scores of one class are sorted, and equal scores are one threshold. They are kept
as they are, which is exact and takes memory for every example; or, with ``num_bins``,
only how many examples of each class fall into each of so many bins of equal width
within ``bounds``, which takes the same memory for any number of examples. Scores
beyond the bounds count in the first and the last bin; the metric is then that of the
scores rounded down to their bins.

Labels shaped like the scores say whether an example is positive: 1 or True. Labels
without the last axis are classes, of which each is told from the others: ``average``
is then ``"macro"``, the mean over the classes, ``"weighted"``, weighted by how often
they are labels, or ``"none"``. A class without positive examples, or for `roc_auc`
without negative ones, has no metric: it is left out of the mean, and NaN by itself.

A score of NaN, like a label out of range, makes the whole metric NaN.
"""

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.metrics.accumulators import BinnedScores, Rows
from fngrad.metrics.derived import Derived
from fngrad.metrics.examples import mask_and_weights, wide
from fngrad.metrics.sums import (
    ends_of_runs,
    pair_of_sum,
    running_sums,
    sums_by_index,
)

Average: TypeAlias = Literal["macro", "weighted", "none"]


class _Thresholds(NamedTuple):
    """One class's examples or bins, with rising scores."""

    positive: jax.Array  # sum of w, shape (n,)
    negative: jax.Array
    first: jax.Array  # int32, where the equal scores begin
    last: jax.Array  # int32, where they end


def roc_auc(
    scores: Any,
    labels: Any,
    *,
    num_bins: int | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    average: Average = "macro",
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure the area under the curve of the receiver operating characteristic.

    It is the probability that a positive example has a larger score than a negative
    one, where a tie counts one half.

    Args:
        scores: floats, shape ``(...)`` or ``(..., classes)``: logits, probabilities or
            any other increasing function of them.
        labels: bools, or integers in {0, 1}, of the same shape; or integers in
            [0, classes), shape ``(...)``.
        num_bins: >= 1; ``None`` keeps the scores.
        bounds: between which scores are binned, such as (-10, 10) for logits.
        average: over classes, see `fngrad.metrics.scores`.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: if labels are neither integers nor bools, the mask is not bool, or
            numbers are complex.
        ValueError: if shapes do not fit, the average is unknown, there is not one bin,
            or the bounds are not two finite numbers in rising order.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import metrics
        >>> scores, labels = jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1])
        >>> print(metrics.roc_auc(scores, labels).value())
        0.875

    References:
        Hanley and McNeil, The meaning and use of the area under a receiver operating
        characteristic curve, 1982, https://doi.org/10.1148/radiology.143.1.7063747.
        Differs from scikit-learn in: classes that are absent are left out of the mean,
        and one-vs-one averages are not computed.
    """
    options = num_bins, bounds, average
    return _ordered(_area, scores, labels, options, where, weights)


def average_precision(
    scores: Any,
    labels: Any,
    *,
    num_bins: int | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    average: Average = "macro",
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure the mean precision at the positive examples' thresholds.

    $$\sum_k (R_k - R_{k-1})\,P_k$$

    of the precisions $P_k$ and recalls $R_k$ at falling thresholds, which is the area
    under their curve as a sum of rectangles.

    Args:
        scores: floats, shape ``(...)`` or ``(..., classes)``: logits, probabilities or
            any other increasing function of them.
        labels: bools, or integers in {0, 1}, of the same shape; or integers in
            [0, classes), shape ``(...)``.
        num_bins: >= 1; ``None`` keeps the scores.
        bounds: between which scores are binned, such as (-10, 10) for logits.
        average: over classes, see `fngrad.metrics.scores`.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: as `roc_auc`.
        ValueError: as `roc_auc`.

    References:
        Zhu, Recall, precision and average precision, 2004. Differs from scikit-learn
        in: without positive examples it is NaN, not 0.
    """
    options = num_bins, bounds, average
    return _ordered(_mean_precision, scores, labels, options, where, weights)


def _ordered(
    measure: Any, scores: Any, labels: Any, options: Any, where: Any, weights: Any
) -> Derived:
    num_bins, bounds, average = options
    numerics.check_choice("average", average, ("macro", "weighted", "none"))
    rows = _rows(scores, labels, where, weights)
    is_binary = jnp.shape(scores) == jnp.shape(labels)
    if num_bins is None:
        return Derived(rows, measure, (average, is_binary))
    num_bins = numerics.check_count("num_bins", num_bins, 1)
    low, high = (float(bound) for bound in bounds)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"need finite bounds (low, high), low < high, got {bounds=}")
    place = (rows.x - low) / (high - low) * num_bins
    # A bin that would not fit an integer is clipped before it becomes one.
    bins = jnp.clip(jnp.floor(place), 0, num_bins - 1).astype(jnp.int32)
    binned = _binned(rows, bins, num_bins, is_binary, weights is not None)
    return Derived(binned, measure, (average, is_binary))


def _binned(
    rows: Rows, bins: jax.Array, num_bins: int, is_binary: bool, is_weighted: bool
) -> BinnedScores:
    columns = bins.shape[-1]
    is_positive = _is_positive(rows.y, columns, is_binary).astype(jnp.int32)
    row = is_positive * columns + jnp.arange(columns, dtype=jnp.int32)[None]
    cells = (row * num_bins + bins).reshape(-1)
    w = jnp.broadcast_to(rows.weight[:, None], bins.shape).reshape(-1)
    size = 2 * columns * num_bins
    sums = sums_by_index(w if is_weighted else None, cells, w != 0, size)
    total, rest = (x.astype(w.dtype).reshape(2, columns, num_bins) for x in sums)
    total = jnp.where(jnp.any(rows.y < 0), jnp.nan, total)
    return BinnedScores(total[1], total[0], (rest[1], rest[0]))


def _rows(scores: Any, labels: Any, where: Any, weights: Any) -> Rows:
    """Return the examples; -1 is a label out of range, or that of a score of NaN."""
    x, y = wide("scores", scores), jnp.asarray(labels)
    is_binary = x.shape == y.shape
    is_classes = x.ndim >= 1 and y.shape == x.shape[:-1] and x.shape[-1] >= 2
    if not (is_binary or is_classes):
        raise ValueError(
            "need labels shaped like the scores, or like them without an axis of two "
            f"or more classes, got scores {x.shape} and labels {y.shape}"
        )
    y = y.astype(jnp.int32) if y.dtype == bool else numerics.integers("labels", labels)
    mask, w = mask_and_weights(where, weights, y.shape, x.dtype)
    classes = 2 if is_binary else x.shape[-1]
    x = x.reshape(y.size, 1 if is_binary else classes)
    y, w = y.reshape(-1), w.reshape(-1)
    if mask is not None:
        mask = mask.reshape(-1)
        x, y = jnp.where(mask[:, None], x, 0), jnp.where(mask, y, 0)
    is_wrong = (y < 0) | (y >= classes) | jnp.any(jnp.isnan(x), axis=-1)
    return Rows(x, jnp.where(is_wrong, -1, y), w)


def _is_positive(labels: jax.Array, columns: int, is_binary: bool) -> jax.Array:
    """Return which examples are positive, per column."""
    first = 1 if is_binary else 0
    classes = first + jnp.arange(columns, dtype=labels.dtype)
    return labels[:, None] == classes[None]


def _area(parts: Rows | BinnedScores, average: Average, is_binary: bool) -> jax.Array:
    def per_class(t: _Thresholds) -> jax.Array:
        before, upto = running_sums(t.negative)
        below = before[t.first] / 2 + upto[t.last] / 2
        negatives = pair_of_sum(t.negative)[0]
        share = numerics.divide(below, negatives)
        area = _share_of(t.positive * share, t.positive)
        return jnp.where(negatives == 0, jnp.nan, area)

    return _over_classes(per_class, parts, average, is_binary)


def _mean_precision(
    parts: Rows | BinnedScores, average: Average, is_binary: bool
) -> jax.Array:
    def per_class(t: _Thresholds) -> jax.Array:
        # From the largest score down: thresholds are read backwards.
        tp, fp = (running_sums(x[::-1])[1][::-1] for x in (t.positive, t.negative))
        above = tp[t.first]
        precision = numerics.divide(above, above + fp[t.first])
        return _share_of(t.positive * precision, t.positive)

    return _over_classes(per_class, parts, average, is_binary)


def _share_of(part: jax.Array, whole: jax.Array) -> jax.Array:
    total, weight = pair_of_sum(part)[0], pair_of_sum(whole)[0]
    return jnp.where(weight == 0, jnp.nan, numerics.divide(total, weight))


def _over_classes(
    per_class: Any, parts: Rows | BinnedScores, average: Average, is_binary: bool
) -> jax.Array:
    """Return the metric of one class, or of several in one number or one by one."""
    if isinstance(parts, BinnedScores):
        thresholds, is_wrong = _thresholds_of_bins(parts)
    else:
        thresholds, is_wrong = _thresholds_of_rows(parts, is_binary)
    values = jax.vmap(per_class)(thresholds)
    values = jnp.where(is_wrong, jnp.nan, values)
    if is_binary:
        return values[0]
    if average == "none":
        return values
    is_there = ~jnp.isnan(values)
    support = jnp.sum(thresholds.positive, axis=-1)
    share = support if average == "weighted" else jnp.ones_like(support)
    share = jnp.where(is_there, share, 0)
    return _share_of(share * jnp.where(is_there, values, 0), share)


def _thresholds_of_bins(parts: BinnedScores) -> tuple[_Thresholds, jax.Array]:
    positive, negative = parts.value()
    place = jnp.arange(positive.shape[-1], dtype=jnp.int32)
    place = jnp.broadcast_to(place, positive.shape)
    is_wrong = jnp.any(jnp.isnan(positive))
    return _Thresholds(positive, negative, place, place), is_wrong


def _thresholds_of_rows(parts: Rows, is_binary: bool) -> tuple[_Thresholds, jax.Array]:
    is_wrong = jnp.any((parts.y < 0) & (parts.weight != 0))
    is_positive = _is_positive(parts.y, parts.x.shape[-1], is_binary)

    def sorted_rows(x: jax.Array, is_positive: jax.Array) -> _Thresholds:
        order = jnp.argsort(x)
        w, is_positive = parts.weight[order], is_positive[order]
        first, last = ends_of_runs(x[order])
        positive, negative = jnp.where(is_positive, w, 0), jnp.where(is_positive, 0, w)
        return _Thresholds(positive, negative, first, last)

    return jax.vmap(sorted_rows, in_axes=1)(parts.x, is_positive), is_wrong
