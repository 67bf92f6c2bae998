r"""The learning rate range test: a short sweep over the learning rate alone.

Every rate trains for the same few steps from the same initial states. Smith's test
increases the rate of a single training from step to step, so the loss at a rate also
reflects all rates before it; here each rate has its own training, a lane of the same
compiled program.

References:
    L. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017,
    https://arxiv.org/abs/1506.01186, section 3.3.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.numerics as numerics
import fngrad.sweeps.results.pictures as pictures
import fngrad.sweeps.results.statistics as statistics
from fngrad.metrics.directions import known_direction
from fngrad.programs.optional_imports import literal
from fngrad.sweeps.running.runner import sweep
from fngrad.types import Key

SAFETY = 10.0  # the suggestion is this factor below the least rate that diverges


class RangeTest(NamedTuple):
    """The results of a short training at each learning rate."""

    metric: str
    rates: np.ndarray  # ascending, (N,)
    losses: np.ndarray  # over the last tenth of each training, (N, S); inf: diverged
    first_loss: float  # before training, median over seeds
    diverges: (
        np.ndarray
    )  # bool, (N,): rate above `lowest`, loss above the first loss or not finite
    lowest: float  # the rate with the lowest median loss
    steepest: float  # the rate at which the loss falls fastest in log(rate)
    divergence: float  # the least rate that diverges; NaN if none does
    suggestion: float  # min(lowest, divergence / 10)
    warnings: tuple[str, ...]

    @property
    def median(self) -> np.ndarray:
        """The median loss of each rate over seeds, shape (N,)."""
        return np.median(self.losses, axis=1)

    def plot(self, label: str | None = None) -> Any:
        """Return a figure of the losses against the rates; notebooks show it.

        Args:
            label: label of the vertical axis, with the unit; ``None`` means the
                metric's name.

        Raises:
            ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        """
        marks = {
            "suggestion": self.suggestion,
            "steepest": self.steepest,
            "divergence": self.divergence,
        }
        return pictures.rate_curve(
            self.rates,
            self.losses,
            self.diverges,
            first_loss=self.first_loss,
            marks=marks,
            label=label or literal(self.metric),
        )


def learning_rate_range_test(
    train_fn: Callable[..., tuple[Any, dict[str, jax.Array]]],
    low: float = 1e-6,
    high: float = 10.0,
    num: int = 64,
    keys: int | Key = 3,
    *,
    args: tuple[Any, ...] = (),
    metric: str = "loss",
    progress: bool = False,
) -> RangeTest:
    r"""Train for a short time at each of many learning rates, and suggest one.

    The loss of a rate is the median over seeds of the mean over the last tenth of the
    training. A rate *diverges* if it is above the rate with the lowest loss and its own
    loss is not finite or above the loss before training. The suggestion is the rate
    with the lowest loss, but at most a tenth of the least rate that diverges: a longer
    training meets larger curvature than a short one. On a quadratic whose largest
    curvature is L it lies in $[0.2 / L, 2 / L]$, if the rates span this interval and
    are closely spaced.

    Args:
        train_fn: ``train_fn(point, key, *args) -> (state, history)``, as for
            `fngrad.sweep`, with the rate ``point["learning_rate"]``; about a hundred
            steps suffice.
        low: the least rate, > 0.
        high: the largest, > low.
        num: how many rates, evenly spaced in their logarithm, >= 3.
        keys: how many seeds, or typed keys.
        args: data, passed to ``train_fn``.
        metric: a loss in the history: a curve over the steps, which starts with the
            loss before the first step.
        progress: whether to show a progress bar.

    Raises:
        TypeError: as `fngrad.sweep`.
        ValueError: if the rates or ``num`` are out of range; if the metric is not a
            curve, is one to maximize, or is computed on the test data; if every rate
            diverges; or as `fngrad.sweep`.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.sweeps import learning_rate_range_test
        >>> def train_fn(point, key):
        ...     optimizer = fg.sgd(point["learning_rate"])
        ...     step = fg.make_step(lambda w, batch: 2.0 * w**2, optimizer)
        ...     state = fg.init_state(jnp.array(1.0), optimizer, key)
        ...     return fg.run(step, state, lambda step: (), 20)
        >>> found = learning_rate_range_test(train_fn, low=1e-4, keys=1)
        >>> print(f"stable below {2 / 4}, suggested {found.suggestion:.3f}")
        stable below 0.5, suggested 0.054
    """
    num = numerics.check_count("num", num, 3)
    if not 0 < low < high < math.inf:
        raise ValueError(f"need 0 < low < high, got {low=} {high=}")
    statistics.selecting((metric, "min"))
    if known_direction(metric) == "max":
        raise ValueError(
            f"need a metric to minimize, got {metric!r}, which is maximized"
        )
    rates = np.geomspace(low, high, num)
    result = sweep(
        train_fn,
        {"learning_rate": rates},
        keys,
        args=args,
        metric=(metric, "min"),
        progress=progress,
    )
    curves = np.asarray(result.history[metric], np.float64)
    if curves.ndim != 3 or curves.shape[2] < 2:
        raise ValueError(
            "need a metric with a curve over two steps or more, "
            f"got shape {curves.shape[2:]} of {metric!r}"
        )
    return _read(metric, rates, curves, result.diverged_at >= 0)


def _read(
    metric: str, rates: np.ndarray, curves: np.ndarray, diverged: np.ndarray
) -> RangeTest:
    tail = math.ceil(curves.shape[2] / 10)
    with np.errstate(over="ignore", invalid="ignore"):
        ends = curves[:, :, -tail:].mean(axis=2)
    losses = statistics.costs(ends, diverged, (metric, "min"))
    median, first = np.median(losses, axis=1), float(np.median(curves[:, :, 0]))
    if np.isinf(median).all():
        raise ValueError(
            f"need a learning rate that does not diverge, got {rates[0]:g} to "
            f"{rates[-1]:g}: lower low"
        )
    best = int(np.argmin(median))
    diverges = (np.arange(len(rates)) > best) & ~(median <= first)
    lowest = float(rates[best])
    divergence = float(rates[diverges.argmax()]) if diverges.any() else math.nan
    suggestion = float(np.fmin(lowest, divergence / SAFETY))
    return RangeTest(
        metric=metric,
        rates=rates,
        losses=losses,
        first_loss=first,
        diverges=diverges,
        lowest=lowest,
        steepest=_steepest(rates[: best + 1], median[: best + 1]),
        divergence=divergence,
        suggestion=suggestion,
        warnings=_warnings(rates, best, diverges, suggestion),
    )


def _steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate where the finite losses fall fastest, up to the lowest loss."""
    is_finite = np.isfinite(losses)
    rates, losses = rates[is_finite], losses[is_finite]
    if len(rates) < 2:
        return float(rates[-1])
    return float(rates[np.argmin(np.gradient(losses, np.log(rates)))])


def _warnings(
    rates: np.ndarray, best: int, diverges: np.ndarray, suggestion: float
) -> tuple[str, ...]:
    found = []
    if best == len(rates) - 1:
        found.append(
            f"the loss still falls at the largest rate, {rates[-1]:g}: raise high"
        )
    elif not diverges.any():
        found.append(f"no rate up to {rates[-1]:g} diverges: raise high")
    if best == 0:
        found.append(f"the loss is lowest at the least rate, {rates[0]:g}: lower low")
    elif suggestion < rates[0]:
        found.append(f"the suggestion is below the least rate, {rates[0]:g}")
    return tuple(found)
