r"""Successive halving: train many points for few steps, the better ones for more.

A *rung* is a number of steps at which the points are compared. All points train to
the first rung; the best of them, one in ``factor``, train on to the next, and so
forth. Each rung is a compiled program of the lanes that are left: the states of the
survivors are gathered, so the other lanes cost nothing more. Compiling every rung pays
off if training takes longer than compiling. With rungs that grow by ``factor``, each
costs about as much as the first, and the full sweep ``factor**(rungs - 1)`` times as
much.

The better point after few steps need not be the better one after many: small learning
rates are slow at first. So the first rung must be long enough for a reliable ranking.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.numerics as numerics
import fngrad.sweeps.results.statistics as statistics
import fngrad.tree as tree
from fngrad.logging.compilations import calls_again
from fngrad.metrics.directions import Directed, Metric, unknown_metric
from fngrad.sweeps.results.result import (
    SweepResult,
    check_pair,
    diverged_at,
    last_values,
)
from fngrad.sweeps.running.runner import seed_keys
from fngrad.sweeps.searching.points import check_points
from fngrad.sweeps.searching.population_based_training import FORM
from fngrad.types import Key

InitFn = Callable[..., Any]
AdvanceFn = Callable[..., tuple[Any, dict[str, jax.Array]]]


class Halving(NamedTuple):
    """The results of P points with S seeds in R rungs."""

    points: dict[str, np.ndarray]  # columns (P,), by path
    rungs: tuple[int, ...]  # steps at which points were compared
    reached: np.ndarray  # int, (P,): the last rung that a point reached, from 0
    scores: np.ndarray  # (R, P, S), NaN where a point was not compared
    history: dict[str, np.ndarray]  # float, (P, S, records), NaN where not trained
    diverged_at: np.ndarray  # int32, (P, S): the step, or -1
    survivors: np.ndarray  # int, (K,): the numbers of the points in ``final``
    final: SweepResult  # of the points that trained to the end; its notes hold
    #                     metric, values, keys, tried (``points``), compile_seconds
    lane_steps: int  # total steps of all lanes

    @property
    def steps(self) -> np.ndarray:
        """The number of steps of each point, int, shape (P,)."""
        return np.array(self.rungs)[self.reached]

    @property
    def full_lane_steps(self) -> int:
        """The number of steps of the full sweep."""
        return self.rungs[-1] * self.scores[0].size


class _Lanes(NamedTuple):
    """The points that are left, and the state of their lanes."""

    alive: np.ndarray  # int, (n,), ascending
    diverged_at: np.ndarray  # int32, (n, S)
    points: Any  # leaves (n S, ...)
    state: Any  # leaves (n S, ...)

    def keep(self, kept: np.ndarray) -> "_Lanes":
        """Gather the lanes of some points, given by their index in ``alive``."""
        seeds = self.diverged_at.shape[1]
        lanes = (kept[:, None] * seeds + np.arange(seeds)[None, :]).reshape(-1)
        points, state = _gathered((self.points, self.state), lanes)
        return _Lanes(self.alive[kept], self.diverged_at[kept], points, state)


class _Rung(NamedTuple):
    """The points that trained to a rung, and their results."""

    alive: np.ndarray  # int, (n,)
    history: dict[str, np.ndarray]  # (n, S, ...), since the rung before
    scores: np.ndarray  # (n, S)
    diverged_at: np.ndarray  # int32, (n, S)


def rungs(low: int, high: int, factor: float = 3.0) -> tuple[int, ...]:
    """Return rungs that grow by a factor and end exactly at ``high``.

    Args:
        low: a lower bound for the steps of the first rung, >= 1.
        high: the steps of the last rung, >= low.
        factor: the ratio of successive rungs, > 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from fngrad.sweeps import rungs
        >>> rungs(10, 300)
        (11, 33, 100, 300)
    """
    low = numerics.check_count("low", low, 1)
    high = numerics.check_count("high", high, low)
    _check_factor(factor)
    count = 1 + int(math.log(high / low) / math.log(factor) + 1e-9)
    steps = [round(high / factor**back) for back in range(count)]
    return tuple(sorted({max(step, low) for step in steps}))


def successive_halving(
    init_fn: InitFn,
    advance_fn: AdvanceFn,
    points: Any,
    keys: int | Key = 5,
    *,
    rungs: Sequence[int],
    factor: float = 3.0,
    args: tuple[Any, ...] = (),
    metric: Metric = ("val/loss", "min"),
    chunk: int | None = None,
) -> Halving:
    """Train all points to the first rung, and the better ones on, rung by rung.

    Points are ranked by the median over seeds; all lanes of a point continue, or none.
    Of n points the best ``ceil(n / factor)`` continue, but none without a finite median
    if another has one. Ties go to the point with fewer diverged lanes, then to the
    first.

    Args:
        init_fn: ``init_fn(point, key, *args) -> state``, pure.
        advance_fn: ``advance_fn(point, state, num_steps, *args) -> (state, history)``,
            pure, ``num_steps`` a Python int; usually `fngrad.run` with an optimizer
            made from the point. Two successive calls should equal one call with the
            sum of their steps: schedules count from the state's step.
        points: a pytree of columns (P, ...), as for `fngrad.sweep`.
        keys: how many seeds, or typed keys (S,); every point sees the same ones.
        rungs: the total steps at each comparison, ascending, see `rungs`.
        factor: one in ``factor`` points continues, > 1.
        args: data, passed to both functions, which should not close over it.
        metric: a name in the history, of which the last value counts, and "min" or
            "max"; or a name that implies one, see `fngrad.metrics.directions`.
        chunk: how many lanes train at once; ``None`` means all that are left.

    Returns:
        The results of all points, and the sweep of those that trained to the end.

    Raises:
        TypeError: if ``advance_fn`` does not return (state, history), or as
            `fngrad.sweep`.
        ValueError: if rungs do not ascend from at least 1, the factor is not above 1,
            the chunk is below 1, the metric is unknown or one of the test data, every
            lane diverged, or the points are invalid.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.sweeps import grid, successive_halving
        >>> def advance(point, x, num_steps):
        ...     x = x * (1 - point["rate"]) ** num_steps
        ...     return x, {"val/loss": x**2}
        >>> found = successive_halving(
        ...     lambda point, key: jax.random.normal(key), advance,
        ...     grid(rate=[0.01, 0.1, 0.9, 0.3, 3.0, 0.2]), keys=3, rungs=(2, 6, 18),
        ... )
        >>> print(found.reached, found.survivors, found.lane_steps)
        [0 0 2 1 0 0] [2] 96

    References:
        K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and
        Hyperparameter Optimization", 2016, https://arxiv.org/abs/1502.07943. Differs
        from it in: a point has several lanes and is ranked by their median.
    """
    columns, _ = check_points(points)
    metric = statistics.selecting(metric)
    ends, chunk = _check(rungs, factor, chunk)
    keys = seed_keys(keys)
    stage, compiling = _stage(advance_fn, chunk), 0.0
    lanes, trained = _begin(init_fn, columns, keys, args, chunk=chunk), []
    for start, end in itertools.pairwise((0, *ends)):
        if trained:
            costs = statistics.costs(trained[-1].scores, lanes.diverged_at >= 0, metric)
            lanes = lanes.keep(_better(costs, factor))
        (state, history), seconds = _advance(stage, lanes, args, end - start)
        compiling += seconds
        _check_history(history, metric)
        history = {
            name: np.asarray(x).reshape(-1, len(keys), *x.shape[1:])
            for name, x in history.items()
        }
        lost, before = diverged_at(history, metric[0]), lanes.diverged_at
        first = np.where((before < 0) & (lost >= 0), lost + start, before)
        lanes = lanes._replace(state=state, diverged_at=first)
        scores = last_values(history[metric[0]])
        trained.append(_Rung(lanes.alive, history, scores, first))
    notes = {"metric": metric, "keys": keys, "compile_seconds": compiling}
    return _results(columns, ends, trained, lanes, notes)


def _results(
    columns: Any,
    ends: tuple[int, ...],
    trained: list[_Rung],
    lanes: _Lanes,
    notes: dict[str, Any],
) -> Halving:
    table = {path: np.asarray(x) for path, x in tree.leaf_paths(columns).items()}
    count, seeds = trained[0].scores.shape
    scores = np.full((len(ends), count, seeds), np.nan)
    reached, lost_at = np.zeros(count, int), np.zeros((count, seeds), np.int32)
    for number, rung in enumerate(trained):
        scores[number, rung.alive] = rung.scores
        reached[rung.alive] = number
        lost_at[rung.alive] = rung.diverged_at
    final = SweepResult(
        points={name: column[lanes.alive] for name, column in table.items()},
        state=_by_point(lanes.state, seeds),
        history=_survivors_history(trained),
        diverged_at=lanes.diverged_at,
        notes={**notes, "values": trained[-1].scores, "tried": table},
    )
    return Halving(
        points=table,
        rungs=ends,
        reached=reached,
        scores=scores,
        history=_padded_history(trained),
        diverged_at=lost_at,
        survivors=lanes.alive,
        final=final,
        lane_steps=int(np.array(ends)[reached].sum()) * seeds,
    )


def _better(costs: np.ndarray, factor: float) -> np.ndarray:
    """Return the rows of the points that continue, ascending."""
    median, lost = np.median(costs, axis=1), np.isinf(costs).sum(axis=1)
    if np.isinf(costs).all():
        raise ValueError(
            f"need a lane that did not diverge, got {costs.size} lanes, all diverged"
        )
    order = np.lexsort((lost, median))
    finite = max(int(np.isfinite(median).sum()), 1)
    return np.sort(order[: min(math.ceil(len(order) / factor), finite)])


def _begin(
    init_fn: InitFn, columns: Any, keys: Key, args: Any, *, chunk: int | None
) -> _Lanes:
    """Return all lanes in their initial states; seeds vary fastest."""
    count, seeds = len(jax.tree.leaves(columns)[0]), keys.shape[0]
    lanes = np.arange(count * seeds)
    points, keys = _gathered(columns, lanes // seeds), _gathered(keys, lanes % seeds)
    begin = jax.jit(
        lambda points, keys, args: _over_lanes(
            lambda point, key: init_fn(point, key, *args), chunk, points, keys
        )
    )
    state = begin(points, keys, args)
    never = np.full((count, seeds), -1, np.int32)
    return _Lanes(np.arange(count), never, points, state)


@jax.jit  # leaf by leaf, each shape would be a program of its own
def _gathered(lanes: Any, numbers: jax.Array) -> Any:
    """Return the lanes of these numbers."""
    return jax.tree.map(lambda x: x[numbers], lanes)


@functools.partial(jax.jit, static_argnums=1)
def _by_point(lanes: Any, seeds: int) -> Any:
    """Return lanes (n S, ...) as (n, S, ...)."""
    return jax.tree.map(lambda x: x.reshape(-1, seeds, *x.shape[1:]), lanes)


def _stage(advance_fn: AdvanceFn, chunk: int | None) -> Any:
    def stage(points: Any, state: Any, args: Any, length: int) -> Any:
        def one(point: Any, state: Any) -> Any:
            return check_pair(advance_fn(point, state, length, *args), FORM)

        return _over_lanes(one, chunk, points, state)

    donated = () if calls_again() else 1
    return jax.jit(stage, static_argnums=3, donate_argnums=donated)


def _advance(
    stage: Any, lanes: _Lanes, args: tuple[Any, ...], length: int
) -> tuple[Any, float]:
    """Train the lanes; return (state, history), and the seconds of compilation."""
    begin = time.perf_counter()
    with jax.disable_jit(False):
        lowered = stage.lower(lanes.points, lanes.state, args, length)
        compiled = lowered.compile()
        seconds = time.perf_counter() - begin
        if calls_again():  # a program compiled ahead of time cannot locate a NaN
            return stage(lanes.points, lanes.state, args, length), seconds
        return compiled(lanes.points, lanes.state, args), seconds


def _over_lanes(
    fn: Callable[..., Any], chunk: int | None, points: Any, rest: Any
) -> Any:
    if chunk is None:
        return jax.vmap(fn)(points, rest)
    return jax.lax.map(lambda lane: fn(*lane), (points, rest), batch_size=chunk)


def _survivors_history(trained: list[_Rung]) -> dict[str, np.ndarray]:
    """Return the complete histories of the points that trained to the end."""
    survivors, curves = trained[-1].alive, {}
    for name in trained[0].history:
        curves[name] = [
            _as_curve(rung.history[name][np.searchsorted(rung.alive, survivors)])
            for rung in trained
        ]
    return {name: np.concatenate(parts, axis=2) for name, parts in curves.items()}


def _padded_history(trained: list[_Rung]) -> dict[str, np.ndarray]:
    """Return the histories of all points, NaN from where a point was dropped."""
    curves: dict[str, list[np.ndarray]] = {}
    for rung in trained:
        for name, x in rung.history.items():
            curve = _as_curve(x)
            padded = np.full((len(trained[0].alive), *curve.shape[1:]), np.nan)
            padded[rung.alive] = curve
            curves.setdefault(name, []).append(padded)
    return {name: np.concatenate(parts, axis=2) for name, parts in curves.items()}


def _as_curve(x: np.ndarray) -> np.ndarray:
    """Return an array (n, S, records, ...); a scalar has one record."""
    return x[:, :, None] if x.ndim == 2 else x


def _check(
    ends: Sequence[int], factor: float, chunk: int | None
) -> tuple[tuple[int, ...], int | None]:
    _check_factor(factor)
    if not len(ends):
        raise ValueError(f"need at least one rung, got rungs={ends}")
    for start, end in itertools.pairwise((0, *ends)):
        numerics.check_count("rung", end, start + 1)
    if chunk is not None:
        chunk = numerics.check_count("chunk", chunk, 1)
    return tuple(map(int, ends)), chunk


def _check_factor(factor: float) -> None:
    if not factor > 1:
        raise ValueError(f"need factor > 1, got {factor=}")


def _check_history(history: Any, metric: Directed) -> None:
    if metric[0] not in history:
        raise unknown_metric(metric[0], history)
    shape = history[metric[0]].shape[1:]
    if len(shape) > 1 or 0 in shape:
        raise ValueError(
            "need a metric with one value or one curve per lane, "
            f"got shape {shape} of {metric[0]!r}"
        )
