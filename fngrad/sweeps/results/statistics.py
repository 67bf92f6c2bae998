r"""Statistics over the seeds of a sweep: medians, intervals, rankings, warnings.

A *score* is one number per lane: the last value of the metric that the sweep selects
by. All points see the same seeds, so comparisons are *paired*: resample r of the
bootstrap draws one list of seeds, with replacement, for all points. A lane that
*diverged*, or whose score is not finite, is never dropped: it ranks below every other.

Points are ranked by the median over seeds. The interval of a median is the
percentile bootstrap's. Few seeds have few order statistics, so at a level of 95 % it
covers the median in 75 % of the cases with 3 seeds, 87 % with 4, 94 % with 5, 87 % with
7, 93 % with 8 and 94 % with 20, whatever the distribution; with fewer than 6 seeds no
level gives more than 94 %. The interval does not account for selection: among many
points, the median of the best is biased because it was selected.

The probability that a point is best is the share of the resamples in which its median
is the best one. With few seeds it is overconfident: of two points that typically differ
half as much as their seeds do, the one with a probability of 97 % or more was the
better one in 92 % of the cases with 5 seeds, in 98 % with 8.

References:
    B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.numerics as numerics
from fngrad.metrics.directions import Directed, Metric, directed

FEW_SEEDS = 5  # with fewer an interval covers the median in less than 15 of 16 cases


class Summary(NamedTuple):
    """Statistics of each point over its seeds; every array has shape (points,)."""

    metric: Directed
    seeds: int  # lanes of each point
    order: np.ndarray  # int, the points' numbers, the best first
    median: np.ndarray  # over seeds, in the metric's units
    low: np.ndarray  # the interval of the median
    high: np.ndarray
    p_best: np.ndarray  # the probability that the point is best
    diverged: np.ndarray  # int, how many lanes diverged or are not finite
    warnings: tuple[str, ...]  # reasons to doubt the best point

    @property
    def best(self) -> int:
        """The number of the point with the best median."""
        return int(self.order[0])


class Comparison(NamedTuple):
    """Statistics of two points; differences are a - b, seed by seed."""

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
        """Return the comparison as one line of text."""
        a, b = self.names
        return (
            f"{self.metric[0]}, {a} minus {b}: {self.difference:.4g} "
            f"({self.low:.4g} to {self.high:.4g}), better on {self.wins}, worse on "
            f"{self.losses}, equal on {self.ties} seeds, p = {self.p_value:.2g}"
        )


def selecting(metric: Metric) -> Directed:
    """Return a metric that may select points: none of the test data.

    Args:
        metric: see `fngrad.metrics.directions.directed`.

    Returns:
        Its name, and "min" or "max".

    Raises:
        ValueError: if the mode is unknown, the name does not imply one, or the metric
            is one of the test data (``test/...``).
    """
    name, mode = directed(metric)
    if "test" in name.split("/"):
        raise ValueError(
            f"need a metric of the validation data to select by, got {metric=}: "
            "selecting by the test data biases the test result"
        )
    return name, mode


def costs(scores: Any, diverged: Any, metric: Directed) -> np.ndarray:
    """Return scores as costs: less is better, infinity where a lane diverged.

    Args:
        scores: any shape; one that is not finite counts as diverged.
        diverged: bool, the shape of ``scores``.
        metric: its mode is "min" where a small score is good.
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
    """Rank points by the median over seeds, with intervals and warnings.

    Args:
        points: hyperparameter -> values, shape (points, ...).
        scores: shape (points, seeds), finite or not.
        diverged: bool, shape (points, seeds).
        metric: the scores' name and "min" or "max", or a name that implies one. Ties
            go to the point with fewer diverged lanes, then to the first.
        level: of the interval, in (0, 1).
        resamples: of the bootstrap.
        key: of the bootstrap, a typed key or an int.
        tried: the columns of all points that were tried, if ``points`` are only some
            of them. A warning is given if the best point lies at an end of these.

    Returns:
        The summary. A point of which half the lanes diverged has an infinite median.

    Raises:
        ValueError: if the mode is unknown, the metric is one of the test data, shapes
            do not match, the level is outside (0, 1), there are no resamples, or
            every lane diverged.

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
    order = np.lexsort((lost, median))
    if metric[1] == "max":
        median, low, high = 0 - median, 0 - high, 0 - low
    summary = Summary(
        metric=metric,
        seeds=cost.shape[1],
        order=order,
        median=median,
        low=low,
        high=high,
        p_best=_shares_of_best(medians),
        diverged=lost,
        warnings=(),
    )
    found = _edges(points, points if tried is None else tried, summary.best)
    found += _weaknesses(summary)
    if len(order) > 1:
        _, low, high = _paired(cost[order[0]], cost[order[1]], drawn, level)
        if low <= 0 <= high:
            found.append(
                "the seeds do not separate the two best points: the interval of their "
                "paired difference contains 0"
            )
    return summary._replace(warnings=tuple(found))


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
        a, b: scores, shape (seeds,), of the same seeds in the same order. A lane that
            diverged is NaN and loses to one that did not; two such lanes tie.
        metric: the scores' name and "min" or "max", or a name that implies one.
        level: of the interval of the median difference, in (0, 1).
        resamples: of the bootstrap.
        key: of the bootstrap, a typed key or an int.

    Raises:
        ValueError: if the mode is unknown, shapes differ, the level is outside (0, 1),
            or there are no resamples.

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
        metric=metric,
        difference=middle,
        low=low,
        high=high,
        wins=int(np.sum(x < y)),
        losses=int(np.sum(x > y)),
        ties=int(np.sum(x == y)),
        p_value=sign_test(x, y),
    )


def sign_test(a: Any, b: Any) -> float:
    r"""Return the p-value of the exact two-sided sign test of a and b, paired by seed.

    With n seeds that differ, k of them in the rarer direction,
    $p = \min(1, 2 \sum_{i \le k} \binom{n}{i} 2^{-n})$. Ties are left out; two equal
    infinities are a tie.

    Args:
        a, b: shape (seeds,).

    Example:
        >>> from fngrad.sweeps.results.statistics import sign_test
        >>> sign_test([1, 2, 3, 4, 5], [2, 3, 4, 5, 6])
        0.0625
    """
    import scipy.stats

    a, b = np.asarray(a), np.asarray(b)
    less, more = int(np.sum(a < b)), int(np.sum(a > b))
    if less + more == 0:
        return 1.0
    return float(scipy.stats.binomtest(less, less + more).pvalue)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Correct n p-values for multiple testing: the m-th smallest by n - m + 1.

    The probability of any false positive among them is then below the level with
    which they are compared.

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
    """Draw lists of seeds with replacement, int, shape (resamples, seeds)."""
    resamples = numerics.check_count("resamples", resamples, 1)
    shape = (resamples, seeds)
    return np.asarray(jax.random.randint(numerics.key(key), shape, 0, seeds))


def _interval(statistic: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the order statistics of the last axis that enclose ``level`` of it.

    There is no interpolation, which gives NaN between infinities.
    """
    if not 0 < level < 1:
        raise ValueError(f"need 0 < level < 1, got {level=}")
    tail = (1 - level) / 2
    low = np.quantile(statistic, tail, axis=-1, method="lower")
    return low, -np.quantile(-statistic, tail, axis=-1, method="lower")


def _paired(
    x: np.ndarray, y: np.ndarray, drawn: np.ndarray, level: float
) -> tuple[float, float, float]:
    """Return the median of x - y seed by seed, and its interval; inf - inf is 0."""
    difference = np.subtract(x, y, where=x != y, out=np.zeros_like(x))
    low, high = _interval(_middle(difference[drawn])[None], level)
    return float(_middle(difference)), float(low[0]), float(high[0])


def _middle(differences: np.ndarray) -> np.ndarray:
    """Return the median of the last axis; that of opposite infinities is 0."""
    ordered = np.sort(differences, axis=-1)
    last = ordered.shape[-1] - 1
    low, high = ordered[..., last // 2], ordered[..., (last + 1) // 2]
    opposite = np.isinf(low) & np.isinf(high) & (low != high)
    return np.where(opposite, 0.0, low / 2 + np.where(opposite, 0.0, high / 2))


def _shares_of_best(medians: np.ndarray) -> np.ndarray:
    """Return the share of resamples in which each point is best; ties share one."""
    is_best = medians == medians.min(axis=0)
    return (is_best / is_best.sum(axis=0)).mean(axis=1)


def _weaknesses(summary: Summary) -> list[str]:
    """Return warnings about the number of seeds, the best point and the metric."""
    best, name, found = summary.best, summary.metric[0], []
    if summary.seeds < FEW_SEEDS:
        found.append(
            f"{summary.seeds} seeds are few: medians and intervals need {FEW_SEEDS} "
            "or more"
        )
    if summary.diverged[best]:
        found.append(
            f"{summary.diverged[best]} of {summary.seeds} lanes of the best point "
            "diverged"
        )
    if not name.startswith("val/"):
        found.append(f"{name} is not a metric of the validation data (val/...)")
    return found


def _edges(
    points: Mapping[str, np.ndarray], tried: Mapping[str, np.ndarray], best: int
) -> list[str]:
    """Return warnings for the numeric axes at whose end the best point lies.

    Zero, as of a decay or a dropout rate, does not count as an end.
    """
    found = []
    for name, column in points.items():
        values = np.asarray(tried[name])
        is_axis = values.ndim == 1 and values.dtype.kind in "iuf"
        if not is_axis or len(np.unique(values)) == 1:
            continue
        ends = {"least": values.min(), "largest": values.max()}
        found += [
            f"the best point has the {word} {name} tried ({end:g}): look beyond it"
            for word, end in ends.items()
            if column[best] == end != 0
        ]
    return found
