r"""Successive halving: many points for a short time, the better ones for longer.

A *rung* is a number of steps at which the points are compared. All points train to
the first rung; the better share, one in ``factor``, trains on to the next, and so
forth. Each rung is one compiled program of as many lanes as are left: the states of
the survivors are gathered, so the others cost nothing any more. Each is compiled on
its own, which pays where training takes longer than compiling. With rungs that grow
by ``factor``, each costs about as much as the first, where the full sweep would cost
``factor**(rungs - 1)`` times as much.

What is better after few steps need not be after many: a small learning rate is slow
and right. So the first rung must be long enough for the ranking to mean something.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.sweeps.results.statistics as statistics
import fngrad.tree as tree
from fngrad.logging.compilations import calls_again
from fngrad.metrics.directions import Directed, Metric
from fngrad.sweeps.results.result import SweepResult, diverged_at, last_values
from fngrad.sweeps.running.runner import seed_keys
from fngrad.sweeps.searching.points import check_points
from fngrad.sweeps.searching.population_based_training import check_outputs
from fngrad.types import Key

InitFn = Callable[..., Any]
AdvanceFn = Callable[..., tuple[Any, dict[str, jax.Array]]]


class Halving(NamedTuple):
    """What became of P points with S seeds in R rungs."""

    points: dict[str, np.ndarray]  # columns (P,), by path
    rungs: tuple[int, ...]  # steps at which points were compared
    reached: np.ndarray  # int, (P,): the last rung that a point trained to, from 0
    scores: np.ndarray  # (R, P, S), NaN where a point was not compared
    history: dict[str, np.ndarray]  # float, (P, S, records), NaN where not trained
    diverged_at: np.ndarray  # int32, (P, S): the step, or -1 as long as it trained
    survivors: np.ndarray  # int, (K,): the points of ``final``, by number
    final: SweepResult  # of the points that trained to the end; its notes have
    #                     metric, values, keys, tried (``points``), compile_seconds
    lane_steps: int  # steps of all lanes together

    @property
    def steps(self) -> np.ndarray:
        """How many steps each point trained, int, shape (P,)."""
        return np.array(self.rungs)[self.reached]

    @property
    def full_lane_steps(self) -> int:
        """How many steps the full sweep would have made."""
        return self.rungs[-1] * self.scores[0].size


class _Lanes(NamedTuple):
    """The points that are left, and the state of their lanes."""

    alive: np.ndarray  # int, (n,), ascending
    points: Any  # leaves (n S, ...)
    state: Any  # leaves (n S, ...)

    def keep(self, places: np.ndarray, seeds: int) -> "_Lanes":
        """Gather the lanes of some of the points, by their place among those left."""
        lanes = (places[:, None] * seeds + np.arange(seeds)[None, :]).reshape(-1)
        points, state = jax.tree.map(lambda x: x[lanes], (self.points, self.state))
        return _Lanes(self.alive[places], points, state)


def rungs(low: int, high: int, factor: float = 3.0) -> tuple[int, ...]:
    """Return rungs that grow by a factor, the last exactly at ``high``.

    Args:
        low: steps of the first rung, at least; >= 1.
        high: steps of the last, >= low.
        factor: from one to the next, > 1.

    Raises:
        ValueError: one of them is out of range.

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
    """Train all points a little, and the better ones on, rung by rung.

    A point is judged by its median over the seeds; all its lanes go on, or none.
    Of n points ``ceil(n / factor)`` go on: those with a finite median before others,
    equals with fewer diverged lanes first, then by number. The rest is dropped.

    Args:
        init_fn: ``init_fn(point, key, *args) -> state``, pure.
        advance_fn: ``advance_fn(point, state, num_steps, *args) -> (state, history)``,
            pure, ``num_steps`` a Python int; usually `fngrad.run` with an optimizer
            made of the point. Two calls, one after the other, should do what one of
            their sum does: a schedule counts from the state's step.
        points: a pytree of columns (P, ...), as for `fngrad.sweep`.
        keys: how many seeds, or typed keys (S,); every point sees the same ones.
        rungs: steps made so far at each comparison, ascending, see `rungs`.
        factor: one in so many points goes on, > 1.
        args: data, passed on; never close over it.
        metric: a name in the history, of which the last value counts, and "min" or
            "max"; or a name that tells, see `fngrad.metrics.directions`.
        chunk: how many lanes train at once; ``None`` means all that are left.

    Returns:
        The record of all points, and the sweep of those that trained to the end.

    Raises:
        TypeError: ``advance_fn`` returns another form, or as `fngrad.sweep`.
        ValueError: rungs that do not ascend from 1 or more, a factor not above 1, a
            chunk below 1, a metric that is unknown or of the test data, every lane
            diverged, or points that do not fit.

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
        from it in: a point is several lanes, judged by their median.
    """
    columns, count = check_points(points)
    metric = statistics.selecting(metric)
    rungs, chunk = _check(rungs, factor, chunk)
    keys = seed_keys(keys)
    seeds = keys.shape[0]
    stage, compiling = _stage(advance_fn, chunk), 0.0
    lanes = _begin(init_fn, columns, count, keys, args, chunk)
    table = {path: np.asarray(x) for path, x in tree.leaf_paths(columns).items()}
    scores = np.full((len(rungs), count, seeds), np.nan)
    reached, lost_at = np.zeros(count, int), np.full((count, seeds), -1, np.int32)
    parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    for rung, length in enumerate(np.diff([0, *rungs])):
        (state, history), took = _advance(stage, lanes, args, int(length))
        compiling += took
        _check_history(history, metric)
        history = {
            name: np.asarray(x).reshape(-1, seeds, *x.shape[1:])
            for name, x in history.items()
        }
        alive, lanes = lanes.alive, lanes._replace(state=state)
        parts.append((alive, history))
        scores[rung, alive] = last_values(history[metric[0]])
        now = diverged_at(history, metric[0])
        lost_at[alive] = _first(lost_at[alive], now, rungs[rung] - int(length))
        reached[alive] = rung
        if rung < len(rungs) - 1:
            kept = _better(scores[rung, alive], lost_at[alive] >= 0, metric, factor)
            lanes = lanes.keep(kept, seeds)
    final = _final(lanes, table, parts, lost_at, metric, keys)
    final.notes["compile_seconds"] = compiling
    steps, whole = tuple(rungs), _whole(parts, count)
    lane_steps = int(np.array(rungs)[reached].sum()) * seeds
    return Halving(
        table, steps, reached, scores, whole, lost_at, lanes.alive, final, lane_steps
    )


def _first(before: np.ndarray, now: np.ndarray, start: int) -> np.ndarray:
    """Return when lanes first diverged: earlier, or in the rung since ``start``."""
    return np.where((before < 0) & (now >= 0), now + start, before)


def _better(
    scores: np.ndarray, lost: np.ndarray, metric: Directed, factor: float
) -> np.ndarray:
    """Return the places of the points that go on, ascending."""
    cost = statistics.costs(scores, lost, metric)
    median, worst = np.median(cost, axis=1), np.isinf(cost).sum(axis=1)
    if np.isinf(cost).all():
        raise ValueError(
            f"need a lane that did not diverge, got {cost.size} lanes, all diverged"
        )
    order = np.lexsort((worst, median))
    finite = max(int(np.isfinite(median).sum()), 1)
    return np.sort(order[: min(math.ceil(len(order) / factor), finite)])


def _begin(
    init_fn: InitFn,
    columns: Any,
    count: int,
    keys: Key,
    args: tuple[Any, ...],
    chunk: int | None,
) -> _Lanes:
    """Make the first state of every lane; seeds vary fastest."""
    seeds = keys.shape[0]
    lanes = np.arange(count * seeds)
    points = jax.tree.map(lambda x: jnp.asarray(x)[lanes // seeds], columns)
    begin = jax.jit(
        lambda points, keys, args: _over_lanes(
            lambda point, key: init_fn(point, key, *args), chunk, points, keys
        )
    )
    state = begin(points, keys[lanes % seeds], args)
    return _Lanes(np.arange(count), points, state)


def _stage(advance_fn: AdvanceFn, chunk: int | None) -> Any:
    def stage(points: Any, state: Any, args: Any, length: int) -> Any:
        def one(point: Any, state: Any) -> Any:
            return check_outputs(advance_fn(point, state, length, *args))

        return _over_lanes(one, chunk, points, state)

    donated = () if calls_again() else 1
    return jax.jit(stage, static_argnums=3, donate_argnums=donated)


def _advance(
    stage: Any, lanes: _Lanes, args: tuple[Any, ...], length: int
) -> tuple[Any, float]:
    """Train lanes on; return (state, history), and the seconds of compiling."""
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


def _final(
    lanes: _Lanes,
    table: dict[str, np.ndarray],
    parts: list[tuple[np.ndarray, dict[str, np.ndarray]]],
    lost_at: np.ndarray,
    metric: Directed,
    keys: Key,
) -> SweepResult:
    """Return what the points that are left did from the first step on."""
    alive, seeds = lanes.alive, keys.shape[0]
    curves = [
        {name: _as_curve(x[np.searchsorted(own, alive)]) for name, x in history.items()}
        for own, history in parts
    ]
    history = {
        name: np.concatenate([part[name] for part in curves], axis=2)
        for name in curves[0]
    }
    state = jax.tree.map(lambda x: x.reshape(-1, seeds, *x.shape[1:]), lanes.state)
    return SweepResult(
        {name: column[alive] for name, column in table.items()},
        state,
        history,
        lost_at[alive],
        {
            "metric": metric,
            "values": last_values(history[metric[0]]),
            "keys": keys,
            "tried": table,
        },
    )


def _whole(
    parts: list[tuple[np.ndarray, dict[str, np.ndarray]]], count: int
) -> dict[str, np.ndarray]:
    """Return the histories of all points, NaN from where a point was dropped."""
    whole: dict[str, list[np.ndarray]] = {}
    for alive, history in parts:
        for name, x in history.items():
            curve = _as_curve(x)
            padded = np.full((count, *curve.shape[1:]), np.nan)
            padded[alive] = curve
            whole.setdefault(name, []).append(padded)
    return {name: np.concatenate(blocks, axis=2) for name, blocks in whole.items()}


def _as_curve(x: np.ndarray) -> np.ndarray:
    """Return (n, S, records, ...): a value is a curve of one record."""
    return x[:, :, None] if x.ndim == 2 else x


def _check(
    rungs: Sequence[int], factor: float, chunk: int | None
) -> tuple[tuple[int, ...], int | None]:
    _check_factor(factor)
    if not len(rungs):
        raise ValueError(f"need at least one rung, got {rungs=}")
    for before, rung in zip((0, *rungs), rungs, strict=False):
        numerics.check_count("rung", rung, before + 1)
    if chunk is not None:
        chunk = numerics.check_count("chunk", chunk, 1)
    return tuple(map(int, rungs)), chunk


def _check_factor(factor: float) -> None:
    if not factor > 1:
        raise ValueError(f"need factor > 1, got {factor=}")


def _check_history(history: Any, metric: Directed) -> None:
    if metric[0] not in history:
        raise ValueError(f"need a metric among {sorted(history)}, got {metric[0]!r}")
    shape = history[metric[0]].shape[1:]
    if len(shape) > 1 or 0 in shape:
        raise ValueError(
            "need a metric with one value or one curve a lane, "
            f"got shape {shape} of {metric[0]!r}"
        )
