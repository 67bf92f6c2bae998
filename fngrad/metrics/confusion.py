r"""Metrics of the confusion matrix, of classes that the largest logit decides.

With $C_{ij}$ how often class $j$ was predicted for class $i$, class $k$ has
$\mathrm{TP}_k = C_{kk}$ true positives, $\mathrm{FP}_k = \sum_{i \ne k} C_{ik}$ false
positives and $\mathrm{FN}_k = \sum_{j \ne k} C_{kj}$ false negatives. A class is
*absent* where all three are 0.

``average``: ``"macro"`` is the mean over the classes that are not absent;
``"weighted"`` the mean weighted by how often they are labels; ``"micro"`` the metric of
the sums of TP, FP and FN; ``"none"`` gives a number per class, NaN where it is absent;
``"binary"`` the number of class 1 of two. A quotient 0 / 0 of a class that is not
absent is 0.

The scores of one logit $x$ per example are ``jnp.stack([jnp.zeros_like(x), x], -1)``.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.numerics.matrix_products as matrix_products
from fngrad.metrics.accumulators import ConfusionMatrix
from fngrad.metrics.classification import confusion_matrix
from fngrad.metrics.derived import Derived

Average: TypeAlias = Literal["macro", "micro", "weighted", "none", "binary"]
Disagreement: TypeAlias = Literal["nominal", "linear", "quadratic"]
AVERAGES = ("macro", "micro", "weighted", "none", "binary")


class _Outcomes(NamedTuple):
    """Shares of all examples, per class."""

    tp: jax.Array
    fp: jax.Array
    fn: jax.Array


def precision(
    logits: Any,
    labels: Any,
    *,
    average: Average = "macro",
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure how often a prediction of a class is right.

    $$\mathrm{TP} / (\mathrm{TP} + \mathrm{FP})$$

    Args:
        logits: floats, shape ``(..., classes)``; the largest is the prediction.
        labels: integers in [0, classes), shape ``(...)``.
        average: see `fngrad.metrics.confusion`.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: as `fngrad.metrics.confusion_matrix`.
        ValueError: as `fngrad.metrics.confusion_matrix`, or if the average is unknown,
            or binary of other than two classes.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import metrics
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [0.0, 1.0]])
        >>> labels = jnp.array([0, 1, 0])
        >>> print(metrics.precision(logits, labels, average="none").value())
        [1.  0.5]
    """
    return _averaged(_precision, average, logits, labels, where, weights)


def recall(
    logits: Any,
    labels: Any,
    *,
    average: Average = "macro",
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure how often a label of a class is predicted.

    $$\mathrm{TP} / (\mathrm{TP} + \mathrm{FN})$$

    Its macro average is the balanced accuracy, if every class is a label.

    Args:
        logits: floats, shape ``(..., classes)``; the largest is the prediction.
        labels: integers in [0, classes), shape ``(...)``.
        average: see `fngrad.metrics.confusion`.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: as `fngrad.metrics.confusion_matrix`.
        ValueError: as `precision`.
    """
    return _averaged(_recall, average, logits, labels, where, weights)


def f_beta(
    logits: Any,
    labels: Any,
    *,
    beta: float = 1.0,
    average: Average = "macro",
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure the weighted harmonic mean of precision and recall.

    $$F_\beta = \frac{(1 + \beta^2)\,\mathrm{TP}}
      {(1 + \beta^2)\,\mathrm{TP} + \beta^2\,\mathrm{FN} + \mathrm{FP}}$$

    Args:
        logits: floats, shape ``(..., classes)``; the largest is the prediction.
        labels: integers in [0, classes), shape ``(...)``.
        beta: $\beta$, > 0 and finite: recall counts this many times as much as
            precision.
        average: see `fngrad.metrics.confusion`.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: as `fngrad.metrics.confusion_matrix`.
        ValueError: as `precision`, or if beta is out of range.

    References:
        Van Rijsbergen, Information retrieval, 1979, chapter 7.
    """
    numerics.check_positive("beta", beta)
    numerics.check_number("beta", beta, high=1e15)
    beta = float(beta)
    return _averaged(_f_beta, average, logits, labels, where, weights, beta)


def dice(
    logits: Any,
    labels: Any,
    *,
    average: Average = "macro",
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure the overlap of predictions and labels, relative to their mean size.

    $$2\,\mathrm{TP} / (2\,\mathrm{TP} + \mathrm{FP} + \mathrm{FN})$$

    It is `f_beta` with ``beta=1``, by the name it has for the pixels of images.

    Args:
        logits: floats, shape ``(..., classes)``; the largest is the prediction.
        labels: integers in [0, classes), shape ``(...)``.
        average: see `fngrad.metrics.confusion`.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: as `fngrad.metrics.confusion_matrix`.
        ValueError: as `precision`.

    References:
        Dice, Measures of the amount of ecologic association between species, 1945,
        https://doi.org/10.2307/1932409. Differs from an image's Dice score in: the
        pixels of all examples are counted together.
    """
    return _averaged(_f_beta, average, logits, labels, where, weights, 1.0)


def iou(
    logits: Any,
    labels: Any,
    *,
    average: Average = "macro",
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure the intersection of predictions and labels over their union.

    $$\mathrm{TP} / (\mathrm{TP} + \mathrm{FP} + \mathrm{FN})$$

    The pixels of all examples are counted together.

    Args:
        logits: floats, shape ``(..., classes)``; the largest is the prediction.
        labels: integers in [0, classes), shape ``(...)``.
        average: see `fngrad.metrics.confusion`.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: as `fngrad.metrics.confusion_matrix`.
        ValueError: as `precision`.
    """
    return _averaged(_iou, average, logits, labels, where, weights)


def matthews(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None
) -> Derived:
    r"""Measure the correlation of predictions and labels, in [-1, 1].

    With $t_k$ and $p_k$ the shares of class $k$ among labels and predictions,

    $$\frac{\sum_k (\mathrm{TP}_k\,\mathrm{TN}_k - \mathrm{FP}_k\,\mathrm{FN}_k)}
      {\sqrt{(1 - \sum_k t_k^2)(1 - \sum_k p_k^2)}}$$

    of shares of all examples; 0 where the labels, or the predictions, are one class.

    Args:
        logits: floats, shape ``(..., classes)``; the largest is the prediction.
        labels: integers in [0, classes), shape ``(...)``.
        where, weights: see `fngrad.metrics`.

    Raises:
        TypeError: as `fngrad.metrics.confusion_matrix`.
        ValueError: as `fngrad.metrics.confusion_matrix`.

    References:
        Gorodkin, Comparing two K-category assignments by a K-category correlation
        coefficient, 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006.
    """
    return Derived(_counted(logits, labels, where, weights), _matthews)


def cohen_kappa(
    logits: Any,
    labels: Any,
    *,
    disagreement: Disagreement = "nominal",
    where: Any = None,
    weights: Any = None,
) -> Derived:
    r"""Measure the agreement of predictions and labels beyond chance, at most 1.

    $$1 - \frac{\sum_{ij} d_{ij} C_{ij}}{\sum_{ij} d_{ij}\,t_i\,p_j}$$

    of the shares $C_{ij}$, with $t$ and $p$ their sums over predictions and labels.

    Args:
        logits: floats, shape ``(..., classes)``; the largest is the prediction.
        labels: integers in [0, classes), shape ``(...)``.
        disagreement: $d_{ij}$: ``"nominal"`` is 1 off the diagonal, ``"linear"``
            $|i - j|$, ``"quadratic"`` $(i - j)^2$ for classes in an order.
        where, weights: see `fngrad.metrics`.

    Returns:
        The metric; its value is NaN where labels and predictions are one class.

    Raises:
        TypeError: as `fngrad.metrics.confusion_matrix`.
        ValueError: as `fngrad.metrics.confusion_matrix`, or if the disagreement is
            unknown.

    References:
        Cohen, Weighted kappa, 1968, https://doi.org/10.1037/h0026256.
    """
    choices = ("nominal", "linear", "quadratic")
    numerics.check_choice("disagreement", disagreement, choices)
    counts = _counted(logits, labels, where, weights)
    return Derived(counts, _cohen_kappa, (disagreement,))


def _counted(logits: Any, labels: Any, where: Any, weights: Any) -> ConfusionMatrix:
    return confusion_matrix(logits, labels, where=where, weights=weights)


def _averaged(
    measure: Any,
    average: Average,
    logits: Any,
    labels: Any,
    where: Any,
    weights: Any,
    *settings: Any,
) -> Derived:
    numerics.check_choice("average", average, AVERAGES)
    counts = _counted(logits, labels, where, weights)
    classes = len(counts.counts)
    if average == "binary" and classes != 2:
        raise ValueError(
            f'need two classes for average="binary", got {classes}: "macro", "micro", '
            '"weighted" and "none" take any number'
        )
    return Derived(counts, measure, (average, *settings))


def _precision(matrix: ConfusionMatrix, average: Average) -> jax.Array:
    return _average(matrix, average, 0.0, 1.0)


def _recall(matrix: ConfusionMatrix, average: Average) -> jax.Array:
    return _average(matrix, average, 1.0, 0.0)


def _f_beta(matrix: ConfusionMatrix, average: Average, beta: float) -> jax.Array:
    share = 1 / (1 + beta**2)
    return _average(matrix, average, beta**2 * share, share)


def _iou(matrix: ConfusionMatrix, average: Average) -> jax.Array:
    return _average(matrix, average, 1.0, 1.0)


def _average(
    matrix: ConfusionMatrix, average: Average, of_fn: float, of_fp: float
) -> jax.Array:
    """Return TP over a weighted sum of TP, FN and FP, averaged over classes."""
    shares, void = _shares(matrix)
    tp, fp, fn = _outcomes(shares)
    is_absent = (tp == 0) & (fp == 0) & (fn == 0)
    support = tp + fn
    if average == "micro":
        tp, fp, fn = (jnp.sum(x) for x in (tp, fp, fn))
    scores = numerics.divide(tp, tp + of_fn * fn + of_fp * fp)
    if average in ("none", "binary"):
        scores = jnp.where(is_absent, jnp.nan, scores)
        return (scores[1] if average == "binary" else scores) + void
    if average != "micro":
        share = support if average == "weighted" else (~is_absent).astype(tp.dtype)
        scores = numerics.divide(jnp.sum(share * scores), jnp.sum(share))
    return scores + void


def _outcomes(shares: jax.Array) -> _Outcomes:
    wrong = shares * _others(shares)
    tp, fp, fn = jnp.diagonal(shares), jnp.sum(wrong, axis=0), jnp.sum(wrong, axis=1)
    return _Outcomes(tp, fp, fn)


def _shares(matrix: ConfusionMatrix) -> tuple[jax.Array, jax.Array]:
    """Return the counts over their sum, so that products of them fit, and 0 or NaN.

    It is NaN where nothing is counted, or a label is out of range.
    """
    counts = matrix.value()
    largest = numerics.divide(counts, jnp.max(counts, keepdims=True))
    total = jnp.sum(largest, keepdims=True)
    count = jnp.sum(counts)
    void = jnp.where(jnp.isnan(count) | (count == 0), jnp.nan, 0)
    return numerics.divide(largest, total), void


def _others(shares: jax.Array) -> jax.Array:
    """Return a matrix of 1 off the diagonal: sums of others do not cancel."""
    return 1 - jnp.eye(len(shares), dtype=shares.dtype)


def _matthews(matrix: ConfusionMatrix) -> jax.Array:
    shares, void = _shares(matrix)
    others = _others(shares)
    tp, fp, fn = _outcomes(shares)
    tn = jnp.sum(matrix_products.matmul(others, shares) * others, axis=1)
    covariance = jnp.sum(tp * tn - fp * fn)
    variances = [
        jnp.sum(share * matrix_products.matmul(others, share))
        for share in (tp + fn, tp + fp)
    ]
    spread = jnp.sqrt(variances[0]) * jnp.sqrt(variances[1])
    return jnp.clip(numerics.divide(covariance, spread), -1, 1) + void


def _cohen_kappa(matrix: ConfusionMatrix, disagreement: Disagreement) -> jax.Array:
    shares, _ = _shares(matrix)
    place = jnp.arange(len(shares), dtype=shares.dtype)
    distance = jnp.abs(place[:, None] - place[None])
    power = {"nominal": 0, "linear": 1, "quadratic": 2}[disagreement]
    cost = jnp.where(distance == 0, 0, distance**power)
    by_chance = jnp.sum(shares, axis=1)[:, None] * jnp.sum(shares, axis=0)[None]
    expected = jnp.sum(cost * by_chance)
    is_void = jnp.where(expected == 0, jnp.nan, 0)
    return 1 - numerics.divide(jnp.sum(cost * shares), expected) + is_void
