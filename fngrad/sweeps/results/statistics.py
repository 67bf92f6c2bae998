r"""What the seeds of a sweep say of its points: medians, intervals, chances, doubts.

A *score* is one number a lane: the last value of the metric that the sweep selects
by. All points see the same seeds, so comparisons are *paired*: resample r of the
bootstrap draws one list of seeds, with repetition, for all points. A lane that
*diverged*, or whose score is not finite, is never dropped: it counts as worse than
every other.

Points are ranked by the median over seeds. The interval of a median is the
percentile bootstrap's. Few seeds have few order statistics, so at a level of 95 % it
covers the median in 75 % of the cases with 3 seeds, 87 % with 4, 94 % with 5, 87 % with
7, 93 % with 8 and 94 % with 20, whatever the distribution; with fewer than 6 no level
is ever more than 94 %. It says nothing of the choice: of many points, the best one's
median is flattered by having been chosen.

The chance that a point is best is the share of the resamples in which its median is.
With few seeds it is too sure: of two points that typically differ half as much as their
seeds do, the one with a chance of 97 % or more was the better one in 92 % of the cases
with 5 seeds, in 98 % with 8.

References:
    B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.numerics as numerics
from fngrad.metrics.directions import Directed, Metric, directed

FEW_SEEDS = 5  # an interval from fewer covers the median less than 15 times of 16


class Summary(NamedTuple):
    """What the seeds say of each point; every array has shape (points,)."""

    metric: Directed
    seeds: int  # lanes of each point
    order: np.ndarray  # int, the points' numbers, the best first
    median: np.ndarray  # over seeds, in the metric's units
    low: np.ndarray  # the interval of the median
    high: np.ndarray
    p_best: np.ndarray  # the chance that the point is best, in [0, 1]
    diverged: np.ndarray  # int, lanes that are not finite
    warnings: tuple[str, ...]  # why the choice may be a bad one

    @property
    def best(self) -> int:
        """The number of the point with the best median."""
        return int(self.order[0])


class Comparison(NamedTuple):
    """What the seeds say of two points; the difference is a - b, seed by seed."""

    metric: Directed
    difference: float  # the median over seeds, in the metric's units
    low: float  # the interval of the median difference
    high: float
    wins: int  # seeds on which a is better
    losses: int
    ties: int
    p_value: float  # of the two-sided exact sign test
    names: tuple[str, str] = ("a", "b")

    def __str__(self) -> str:
        """Say it in a line."""
        a, b = self.names
        return (
            f"{self.metric[0]}, {a} minus {b}: {self.difference:.4g} "
            f"({self.low:.4g} to {self.high:.4g}), better on {self.wins}, worse on "
            f"{self.losses}, equal on {self.ties} seeds, p = {self.p_value:.2g}"
        )


def selecting(metric: Metric) -> Directed:
    """Return a metric that points may be selected by: never one of the test data.

    Args:
        metric: see `fngrad.metrics.directions.directed`.

    Returns:
        Its name and which way is better.

    Raises:
        ValueError: another mode, a name that does not tell the way, or one under
            ``test/``.
    """
    name, mode = directed(metric)
    if "test" in name.split("/"):
        raise ValueError(
            "need a metric of the validation data to select by, because a choice by "
            f"the test data spoils them, got {metric=}"
        )
    return name, mode


def costs(scores: Any, diverged: Any, metric: Directed) -> np.ndarray:
    """Return scores as costs: less is better, and infinite where a lane diverged.

    Args:
        scores: any shape.
        diverged: bool, the shape of ``scores``; what is not finite counts too.
        metric: whose mode says which end of the scores is good.
    """
    scores = np.asarray(scores, np.float64)
    signed = scores if metric[1] == "min" else -scores
    return np.where(np.asarray(diverged) | ~np.isfinite(scores), np.inf, signed)


def summarize(
    points: Mapping[str, np.ndarray],
    scores: Any,
    diverged: Any,
    metric: Metric = ("val/loss", "min"),
    *,
    level: float = 0.95,
    resamples: int = 2000,
    key: int | jax.Array = 0,
    tried: Mapping[str, np.ndarray] | None = None,
) -> Summary:
    """Rank points by the median over seeds, with intervals, chances and doubts.

    Args:
        points: hyperparameter -> values, shape (points, ...).
        scores: shape (points, seeds), finite or not.
        diverged: bool, shape (points, seeds).
        metric: the scores' name and "min" or "max", or a name that tells. Ties go to
            the point with fewer diverged lanes, then to the first.
        level: of the interval, in (0, 1).
        resamples: of the bootstrap.
        key: of the bootstrap, a typed key or an int.
        tried: the columns of all points that were tried, where ``points`` are those
            that are left of them: the best is doubted at the ends of these.

    Returns:
        The summary. A point of which half the lanes diverged has an infinite median.

    Raises:
        ValueError: another mode, a metric of the test data, shapes that do not fit,
            a level outside (0, 1), no resamples, or every lane diverged.

    Example:
        >>> from fngrad.sweeps.results.statistics import summarize
        >>> scores = [[0.3, 0.2, 0.4], [0.1, 0.1, 0.2], [0.5, float("nan"), 0.1]]
        >>> points = {"learning_rate": [0.1, 0.2, 0.3]}
        >>> found = summarize(points, scores, [[False] * 3] * 3)
        >>> print(found.best, found.median, found.diverged)
        1 [0.3 0.1 0.5] [0 0 1]
    """
    metric = selecting(metric)
    _check_shapes(points, np.shape(scores), np.shape(diverged))
    cost = costs(scores, diverged, metric)
    lost = np.isinf(cost).sum(axis=1)
    if lost.sum() == cost.size:
        raise ValueError(
            f"need a lane that did not diverge, got {cost.size} lanes, all diverged"
        )
    drawn = _resample(cost.shape[1], resamples, key)
    medians = np.stack([np.median(row[drawn], axis=1) for row in cost])
    median, (low, high) = np.median(cost, axis=1), _interval(medians, level)
    order, chances = np.lexsort((lost, median)), _chances(medians)
    if metric[1] == "max":
        median, low, high = 0 - median, 0 - high, 0 - low
    seeds = cost.shape[1]
    summary = Summary(
        metric, seeds, order, median, low, high, chances, lost, warnings=()
    )
    doubts = _edges(points, points if tried is None else tried, summary.best)
    doubts += _doubts(summary)
    if len(order) > 1:
        _, low, high = _paired(cost[order[0]], cost[order[1]], drawn, level)
        doubts += _doubts_of_order(low, high)
    return summary._replace(warnings=tuple(doubts))


def compare_scores(
    a: Any,
    b: Any,
    metric: Metric = ("val/loss", "min"),
    *,
    level: float = 0.95,
    resamples: int = 2000,
    key: int | jax.Array = 0,
) -> Comparison:
    """Compare two points seed by seed.

    Args:
        a, b: scores, shape (seeds,), of the same seeds in the same order; a lane that
            diverged is NaN and loses against any that did not; two such are a tie.
        metric: the scores' name and "min" or "max", or a name that tells.
        level: of the interval of the median difference, in (0, 1).
        resamples: of the bootstrap.
        key: of the bootstrap, a typed key or an int.

    Raises:
        ValueError: another mode, shapes that differ, a level outside (0, 1), or no
            resamples.

    Example:
        >>> from fngrad.sweeps.results.statistics import compare_scores
        >>> found = compare_scores([1.0, 2.0, 3.0], [1.5, 3.0, 3.0])
        >>> print(found.difference, found.wins, found.losses, found.ties)
        -0.5 2 0 1
    """
    metric = directed(metric)
    if np.ndim(a) != 1 or np.shape(a) != np.shape(b) or np.size(a) == 0:
        raise ValueError(
            f"need scores of one shape (seeds,), got {np.shape(a)} and {np.shape(b)}"
        )
    x, y = (costs(v, np.zeros(np.shape(v), bool), metric) for v in (a, b))
    middle, low, high = _paired(x, y, _resample(len(x), resamples, key), level)
    if metric[1] == "max":
        middle, low, high = 0 - middle, 0 - high, 0 - low
    return Comparison(
        metric,
        middle,
        low,
        high,
        int(np.sum(x < y)),
        int(np.sum(x > y)),
        int(np.sum(x == y)),
        sign_test(x, y),
    )


def sign_test(a: Any, b: Any) -> float:
    r"""Return the two-sided p-value that a and b, paired by seed, differ by chance.

    With n seeds that differ, k of them in the rarer direction,
    $p = \min(1, 2 \sum_{i \le k} \binom{n}{i} 2^{-n})$. Ties say nothing and are left
    out; two infinities are a tie.

    Args:
        a, b: shape (seeds,).

    Example:
        >>> from fngrad.sweeps.results.statistics import sign_test
        >>> sign_test([1, 2, 3, 4, 5], [2, 3, 4, 5, 6])
        0.0625
    """
    a, b = np.asarray(a), np.asarray(b)
    less, more = int(np.sum(a < b)), int(np.sum(a > b))
    n, k = less + more, min(less, more)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Correct p-values for their number: the m-th smallest by n - m + 1.

    The chance of one false statement among them is then below the level at which
    they are read.

    Args:
        p_values: name -> p-value, in [0, 1].

    Example:
        >>> from fngrad.sweeps.results.statistics import holm
        >>> holm({"adam": 0.01, "sgd": 0.04, "lion": 0.03})
        {'adam': 0.03, 'lion': 0.06, 'sgd': 0.06}

    References:
        S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = largest
    return corrected


def _check_shapes(
    points: Mapping[str, np.ndarray], shape: tuple[int, ...], other: tuple[int, ...]
) -> None:
    if len(shape) != 2 or 0 in shape or other != shape:
        raise ValueError(
            "need scores and diverged of one shape (points, seeds), "
            f"got {shape} and {other}"
        )
    for name, values in points.items():
        if np.shape(values)[:1] != shape[:1]:
            raise ValueError(
                f"need {shape[0]} values of each hyperparameter, "
                f"got shape {np.shape(values)} for {name!r}"
            )


def _resample(seeds: int, resamples: int, key: int | jax.Array) -> np.ndarray:
    """Draw lists of seeds with repetition, int, shape (resamples, seeds)."""
    resamples = numerics.check_count("resamples", resamples, 1)
    shape = (resamples, seeds)
    return np.asarray(jax.random.randint(numerics.key(key), shape, 0, seeds))


def _interval(statistic: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the order statistics of the last axis that enclose ``level`` of it.

    None is interpolated: between infinities that gives NaN.
    """
    if not 0 < level < 1:
        raise ValueError(f"need 0 < level < 1, got {level=}")
    ordered = np.sort(statistic, axis=-1)
    outside = (1 - level) / 2 * (ordered.shape[-1] - 1)
    return ordered[..., math.floor(outside)], ordered[..., -1 - math.floor(outside)]


def _paired(
    x: np.ndarray, y: np.ndarray, drawn: np.ndarray, level: float
) -> tuple[float, float, float]:
    """Return the median of x - y seed by seed, and its interval; inf - inf is 0."""
    difference = np.subtract(x, y, where=x != y, out=np.zeros_like(x))
    low, high = _interval(_middle(difference[drawn])[None], level)
    return float(_middle(difference)), float(low[0]), float(high[0])


def _middle(differences: np.ndarray) -> np.ndarray:
    """Return the median of the last axis; between opposite infinities it is 0."""
    ordered = np.sort(differences, axis=-1)
    last = ordered.shape[-1] - 1
    low, high = ordered[..., last // 2], ordered[..., (last + 1) // 2]
    opposite = np.isinf(low) & np.isinf(high) & (low != high)
    return np.where(opposite, 0.0, low / 2 + np.where(opposite, 0.0, high / 2))


def _chances(medians: np.ndarray) -> np.ndarray:
    """Return how often each point is best; equals share."""
    is_best = medians == medians.min(axis=0)
    return (is_best / is_best.sum(axis=0)).mean(axis=1)


def _doubts(summary: Summary) -> list[str]:
    best, name, doubts = summary.best, summary.metric[0], []
    if summary.seeds < FEW_SEEDS:
        doubts.append(
            f"{summary.seeds} seeds are few: medians and intervals need {FEW_SEEDS} "
            "or more"
        )
    if summary.diverged[best]:
        doubts.append(
            f"{summary.diverged[best]} of {summary.seeds} lanes of the best point "
            "diverged"
        )
    if not name.startswith("val/"):
        doubts.append(f"{name} is not of the validation data (val/...)")
    return doubts


def _doubts_of_order(low: float, high: float) -> list[str]:
    """Doubt the best point where its difference from the second may be none."""
    if not low <= 0 <= high:
        return []
    return [
        "the seeds do not tell the two best points apart: the interval of their paired "
        "difference holds 0"
    ]


def _edges(
    points: Mapping[str, np.ndarray], tried: Mapping[str, np.ndarray], best: int
) -> list[str]:
    """Name the axes at whose end the best point lies; what has no order has none.

    Zero, of a decay or a rate of dropout, is no end that one looks beyond.
    """
    doubts = []
    for name, column in points.items():
        values = np.asarray(tried[name])
        is_axis = values.ndim == 1 and values.dtype.kind in "iuf"
        if not is_axis or len(np.unique(values)) == 1:
            continue
        ends = {"least": values.min(), "largest": values.max()}
        doubts += [
            f"the best point has the {word} {name} tried ({end:g}): look beyond it"
            for word, end in ends.items()
            if column[best] == end != 0
        ]
    return doubts
