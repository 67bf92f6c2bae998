r"""Population based training as one pure function.

A *population* of N members trains in rounds. Between two rounds every member in the
bottom quantile copies the whole state and the hyperparameters of a random member of the
top quantile (*exploit*) and perturbs the hyperparameters (*explore*). So one run finds
a schedule of hyperparameters, not only a value. The member whose state each one copied
is recorded, round by round; following these records backwards gives the *lineage*.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.metrics.directions import Directed, Metric, unknown_metric
from fngrad.sweeps.results.result import check_pair
from fngrad.sweeps.results.statistics import selecting
from fngrad.types import Key, Path

Range = tuple[float, float]

FORM = "advance_fn(point, state, num_steps, ...)"  # its form, for errors


class Population(NamedTuple):
    """The results of N members in R rounds."""

    state: Any  # leaves (N, ...), at the end of the last round
    points: Any  # hyperparameters used in each round, leaves (R, N)
    scores: jax.Array  # at the end of each round, (R, N)
    parents: jax.Array  # int32, (R, N): whose state a member started the round with
    history: dict[str, jax.Array]  # of the training, (R, N, ...)


class _Settings(NamedTuple):
    count: int  # members replaced after a round
    factors: tuple[float, float]
    resample: float  # a probability
    ranges: dict[Path, Range]
    mode: str  # "min" or "max"


def population_based_training(
    init_fn: Callable[..., Any],
    advance_fn: Callable[..., tuple[Any, dict[str, jax.Array]]],
    points: Any,
    key: int | Key,
    *,
    rounds: int,
    steps_per_round: int,
    args: tuple[Any, ...] = (),
    metric: Metric = ("val/loss", "min"),
    quantile: float = 0.25,
    factors: tuple[float, float] = (0.8, 1.25),
    ranges: Mapping[Path, Range] | None = None,
    resample: float = 0.0,
) -> Population:
    """Train a population that copies its best and perturbs their hyperparameters.

    The function is pure: jit it, or vmap it over ``key``. Under jit pass ``args`` as
    arguments of the jitted function. After each round but the last, the members in the
    bottom quantile, and all whose score is not finite, are replaced; if no score is
    finite, no one is replaced. All others keep state and hyperparameters bit for bit.
    A copy takes the parent's whole state, including its key, so parent and child see
    the same batches from then on.

    Args:
        init_fn: ``init_fn(point, key, *args) -> state``; each member has its own key.
        advance_fn: ``advance_fn(point, state, num_steps, *args) -> (state, history)``,
            pure, ``num_steps`` a Python int: usually `fngrad.run` with an optimizer
            made from the point, whose state has the same structure for every point.
        points: initial hyperparameters, a pytree of float arrays of shape (N,), N >= 2.
        key: a typed key or an int.
        rounds: the number of rounds, >= 1.
        steps_per_round: steps of each round, >= 1.
        args: data, passed to both functions.
        metric: a name in the history, of which the last value counts, and "min" or
            "max"; or a name that implies one, see `fngrad.metrics.directions`.
        quantile: the share of members to replace, and of those to copy, in (0, 0.5];
            at least one member each.
        factors: a hyperparameter is multiplied by one of the two, chosen at random; so
            a 0 stays 0, and signs do not change.
        ranges: hyperparameter's path -> (low, high), to which its values are clipped.
        resample: the probability that a hyperparameter is instead drawn from its
            range, log-uniformly if ``low > 0``; in [0, 1].

    Returns:
        The final states, and the hyperparameters, scores and parents in each round.

    Raises:
        TypeError: if a hyperparameter is not floating, or ``advance_fn`` does not
            return (state, history).
        ValueError: if shapes of points differ, there are fewer than two members, a
            point is not finite or outside its range, an argument is out of range, a
            range belongs to no hyperparameter, a range is missing with
            ``resample > 0``, or the metric is unknown or one of the test data.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.sweeps import population_based_training
        >>> def advance(point, x, num_steps):
        ...     x = x * (1 - point["rate"]) ** num_steps
        ...     return x, {"loss": x**2}
        >>> found = population_based_training(
        ...     lambda point, key: jax.random.normal(key),
        ...     advance,
        ...     {"rate": jnp.array([0.01, 0.02, 0.1, 0.2])},
        ...     key=0, rounds=3, steps_per_round=5, metric=("loss", "min"),
        ... )
        >>> print(found.scores.shape, found.parents[0])
        (3, 4) [0 1 2 3]

    References:
        M. Jaderberg et al., "Population Based Training of Neural Networks", 2017,
        https://arxiv.org/abs/1711.09846, algorithm 1 with truncation selection.
        Differs from it in: members train synchronously, round by round; scores are
        compared after every round; the factors 0.8 and 1.25 are reciprocal.
    """
    points = jax.tree.map(jnp.asarray, points)
    size = _check_points(points)
    rounds = numerics.check_count("rounds", rounds, 1)
    steps_per_round = numerics.check_count("steps_per_round", steps_per_round, 1)
    metric = selecting(metric)
    settings = _settings(
        points,
        metric,
        quantile=quantile,
        factors=factors,
        ranges=ranges,
        resample=resample,
    )
    k_init, k_rounds = jax.random.split(numerics.key(key))
    state = jax.vmap(lambda point, k: init_fn(point, k, *args))(
        points, jax.random.split(k_init, size)
    )
    advance = jax.vmap(
        lambda point, s: check_pair(advance_fn(point, s, steps_per_round, *args), FORM)
    )
    unscored = jnp.zeros(size, jnp.result_type(float))

    def one_round(carried: Any, now: jax.Array) -> Any:
        state, points, scores = carried
        k_exploit, k_explore = jax.random.split(jax.random.fold_in(k_rounds, now))
        parents = exploit(k_exploit, scores, settings.count, settings.mode)
        parents = jnp.where(now == 0, jnp.arange(size, dtype=jnp.int32), parents)
        state, inherited = jax.tree.map(lambda x: x[parents], (state, points))
        varied = _explore(k_explore, inherited, settings)
        is_new = parents != jnp.arange(size, dtype=jnp.int32)
        points = jax.tree.map(lambda x, y: jnp.where(is_new, x, y), varied, points)
        state, history = advance(points, state)
        scores = _last(history, metric[0]).astype(scores.dtype)
        return (state, points, scores), (points, scores, parents, history)

    (state, _, _), (points, scores, parents, history) = jax.lax.scan(
        one_round, (state, points, unscored), jnp.arange(rounds)
    )
    return Population(
        state=state, points=points, scores=scores, parents=parents, history=history
    )


def exploit(key: Key, scores: jax.Array, count: int, mode: str = "min") -> jax.Array:
    """Return whose state each member continues with: its own or one of the best's.

    The ``count`` worst members, and all whose score is not finite, draw from the
    ``count`` best finite ones; equal scores rank by number. The best members are never
    replaced.

    Args:
        key: typed.
        scores: shape (N,).
        count: in [1, N / 2].
        mode: "min" or "max".

    Returns:
        int32, shape (N,).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.sweeps.searching.population_based_training import exploit
        >>> print(exploit(jax.random.key(0), jnp.array([3.0, 1.0, 2.0, jnp.nan]), 1))
        [0 1 2 1]
    """
    size = scores.shape[0]
    own = jnp.arange(size, dtype=jnp.int32)
    is_finite = jnp.isfinite(scores)
    signed = scores if mode == "min" else -scores
    order = jnp.argsort(jnp.where(is_finite, signed, jnp.inf), stable=True)
    rank = jnp.zeros(size, jnp.int32).at[order].set(own)
    eligible = jnp.minimum(jnp.sum(is_finite, dtype=jnp.int32), count)
    drawn = jax.random.randint(key, (size,), 0, jnp.maximum(eligible, 1))
    is_bottom = ((rank >= size - count) | ~is_finite) & (rank >= eligible)
    chosen = order[drawn].astype(jnp.int32)
    return jnp.where(is_bottom & (eligible > 0), chosen, own)


def lineage(parents: Any, member: int) -> np.ndarray:
    """Return the ancestors of a member's final state, one per round.

    That state was trained with the hyperparameters ``points[r, lineage[r]]``, round by
    round.

    Args:
        parents: int, shape (R, N), see `Population`.
        member: a number in [0, N).

    Returns:
        int, shape (R,); the last entry is ``member``.

    Raises:
        ValueError: if there is no such member.

    Example:
        >>> from fngrad.sweeps.searching.population_based_training import lineage
        >>> print(lineage([[0, 1, 2], [0, 0, 2], [0, 1, 1]], 2))
        [0 1 2]
    """
    parents = np.asarray(parents)
    if not 0 <= member < parents.shape[1]:
        raise ValueError(f"need 0 <= member < {parents.shape[1]}, got {member=}")
    line = [member]
    for row in parents[:0:-1]:
        line.append(int(row[line[-1]]))
    return np.array(line[::-1])


def _explore(key: Key, points: Any, settings: _Settings) -> Any:
    """Multiply every hyperparameter by a factor, or draw it again, within its range."""
    varied = {}
    for number, (path, x) in enumerate(tree.leaf_paths(points).items()):
        k_factor, k_new, k_which = jax.random.split(jax.random.fold_in(key, number), 3)
        small, large = (jnp.asarray(f, x.dtype) for f in settings.factors)
        up = jax.random.bernoulli(k_factor, shape=x.shape)
        value = x * jnp.where(up, large, small)
        if path in settings.ranges:
            low, high = settings.ranges[path]
            is_drawn = jax.random.bernoulli(k_which, settings.resample, x.shape)
            value = jnp.where(is_drawn, _draw(k_new, x, low, high), value)
            bounds = (jnp.asarray(limit, x.dtype) for limit in (low, high))
            value = jnp.clip(value, *bounds)
        varied[path] = value
    return tree.from_leaf_paths(points, varied)


def _draw(key: Key, like: jax.Array, low: float, high: float) -> jax.Array:
    u = jax.random.uniform(key, like.shape, like.dtype)
    if low > 0:
        start, end = (jnp.asarray(v, like.dtype) for v in np.log((low, high)))
        return jnp.exp(start + u * (end - start))
    start, end = jnp.asarray(low, like.dtype), jnp.asarray(high, like.dtype)
    return start + u * (end - start)


def _last(history: dict[str, jax.Array], name: str) -> jax.Array:
    if name not in history:
        raise unknown_metric(name, history)
    values = history[name]
    if values.ndim > 2 or 0 in values.shape:
        raise ValueError(
            "need a metric of a scalar, or of shape (steps,), "
            f"got shape {values.shape[1:]} for {name!r}"
        )
    return values if values.ndim == 1 else values[:, -1]


def _check_points(points: Any) -> int:
    """Return the number of members."""
    for path, x in tree.leaf_paths(points).items():
        numerics.check_unmasked(f"points at {path!r}", x)
    shapes = {path: x.shape for path, x in tree.leaf_paths(points).items()}
    sizes = set(shapes.values())
    if len(sizes) != 1 or len(next(iter(sizes))) != 1 or next(iter(sizes))[0] < 2:
        raise ValueError(f"need points of one shape (members,) with >= 2, got {shapes}")
    for path, x in tree.leaf_paths(points).items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"need floating hyperparameters, got dtype {x.dtype} for {path!r}"
            )
        if not isinstance(x, Tracer) and not np.isfinite(x).all():
            raise ValueError(f"need finite points, got {x.tolist()} for {path!r}")
    return next(iter(sizes))[0]


def _settings(
    points: Any,
    metric: Directed,
    *,
    quantile: float,
    factors: tuple[float, float],
    ranges: Mapping[Path, Range] | None,
    resample: float,
) -> _Settings:
    if not 0 < quantile <= 0.5:
        raise ValueError(f"need 0 < quantile <= 0.5, got {quantile=}")
    if not 0 < factors[0] <= factors[1]:
        raise ValueError(f"need 0 < factors[0] <= factors[1], got {factors=}")
    numerics.check_number("resample", resample, 0, 1)
    leaves, ranges = tree.leaf_paths(points), dict(ranges or {})
    for path, limits in ranges.items():
        _check_range(path, limits, leaves)
    missing = sorted(leaves.keys() - ranges.keys())
    if resample and missing:
        raise ValueError(f"need a range for {missing}, got {resample=}")
    size = len(next(iter(leaves.values())))
    return _Settings(
        count=max(int(quantile * size), 1),
        factors=factors,
        resample=resample,
        ranges=ranges,
        mode=metric[1],
    )


def _check_range(path: Path, limits: Range, leaves: dict[Path, Any]) -> None:
    if path not in leaves:
        raise ValueError(f"need ranges of {sorted(leaves)}, got one of {path!r}")
    low, high = limits
    if not low < high:
        raise ValueError(f"need low < high, got {limits} for {path!r}")
    values = leaves[path]
    if isinstance(values, Tracer):
        return
    values = np.asarray(values)
    inside = (values >= values.dtype.type(low)) & (values <= values.dtype.type(high))
    if not inside.all():
        raise ValueError(f"need {path!r} within {limits}, got {values.tolist()}")
