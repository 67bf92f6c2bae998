r"""Points of a sweep: columns of hyperparameters, one entry per point.

*Points* are a pytree of arrays whose first axes count the points, usually a dict of
columns. Point i is the i-th entry of every leaf. `grid` takes all combinations of
values; `random` and `sobol` draw from ranges. A *range* maps u in [0, 1) to a value:

$$\text{uniform: } a + u (b - a), \quad
  \text{log uniform: } a (b / a)^u, \quad
  \text{choice: } v_{\lfloor u n \rfloor}.$$

The columns are float64 and int64 on the host; in the program they have the dtypes of
jax's present setting (float32 and int32 by default).
"""

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.array_inputs import unmasked
from fngrad.types import Key


class Range(NamedTuple):
    """The distribution of a hyperparameter."""

    quantile: Callable[[np.ndarray], np.ndarray]  # u in [0, 1), (n,) -> values, (n,)
    text: str
    low: float | None = None  # of a uniform or log_uniform range
    high: float | None = None
    is_log: bool = False
    values: tuple[float, ...] = ()  # of a choice


def uniform(low: float, high: float) -> Range:
    """Return the uniform distribution over [low, high).

    Args:
        low, high: finite numbers, low < high.

    Raises:
        ValueError: if they are not.

    Example:
        >>> import numpy as np
        >>> from fngrad.sweeps.searching.points import uniform
        >>> print(uniform(1.0, 3.0).quantile(np.array([0.0, 0.5])))
        [1. 2.]
    """
    _check_bounds(low, high)
    text = f"uniform({low}, {high})"
    return Range(lambda u: low + u * (high - low), text, low, high)


def log_uniform(low: float, high: float) -> Range:
    """Return the distribution over [low, high) that is uniform in the logarithm.

    Args:
        low, high: finite numbers, 0 < low < high.

    Raises:
        ValueError: if they are not.

    Example:
        >>> import numpy as np
        >>> from fngrad.sweeps.searching.points import log_uniform
        >>> print(log_uniform(0.01, 100.0).quantile(np.array([0.0, 0.5])))
        [0.01 1.  ]
    """
    _check_bounds(low, high)
    if not low > 0:
        raise ValueError(f"need 0 < low in a log_uniform range, got {low=}")
    width = math.log(high) - math.log(low)
    text = f"log_uniform({low}, {high})"
    return Range(lambda u: low * np.exp(u * width), text, low, high, is_log=True)


def choice(values: Sequence[float]) -> Range:
    """Return the distribution over some numbers that are equally likely.

    Args:
        values: finite numbers, at least one. Other values belong in the ``static`` of
            `fngrad.sweep`.

    Raises:
        ValueError: if there are no values, or one is not finite.
        TypeError: if a value is not a number.

    Example:
        >>> import numpy as np
        >>> from fngrad.sweeps.searching.points import choice
        >>> print(choice([8, 16, 32]).quantile(np.array([0.0, 0.4, 0.99])))
        [ 8 16 32]
    """
    column = _column("choice", values)
    last = len(column) - 1
    return Range(
        lambda u: column[np.minimum((u * len(column)).astype(int), last)],
        f"choice({column.tolist()})",
        values=tuple(column.tolist()),
    )


def grid(**axes: Any) -> dict[str, np.ndarray]:
    """Return every combination of values; the last axis varies fastest.

    Args:
        axes: name -> a number or several.

    Returns:
        name -> column, each of the product of the axes' lengths.

    Raises:
        ValueError: if there are no axes, one is empty, or a value is not finite.
        TypeError: if a value is not a number.

    Example:
        >>> from fngrad.sweeps.searching.points import grid
        >>> points = grid(learning_rate=[0.1, 0.2], momentum=[0.0, 0.9])
        >>> print(points["learning_rate"], points["momentum"])
        [0.1 0.1 0.2 0.2] [0.  0.9 0.  0.9]
    """
    _check_some(axes)
    columns = [_column(name, values) for name, values in axes.items()]
    mesh = np.meshgrid(*columns, indexing="ij")
    return {name: x.reshape(-1) for name, x in zip(axes, mesh, strict=True)}


def random(n: int, key: int | Key, **ranges: Any) -> dict[str, np.ndarray]:
    """Draw points independently.

    Args:
        n: how many, >= 1.
        key: a typed key or an int.
        ranges: name -> `uniform`, `log_uniform`, `choice`, a list of numbers (a choice
            of them) or one number.

    Returns:
        name -> column, shape (n,).

    Raises:
        ValueError: if n is below 1, or a range is missing or invalid, such as a tuple
            of two numbers.
        TypeError: if a value is not a number.

    Example:
        >>> from fngrad.sweeps.searching.points import log_uniform, random
        >>> points = random(3, 0, learning_rate=log_uniform(1e-4, 1.0), momentum=0.9)
        >>> points["learning_rate"].shape, points["momentum"].tolist()
        ((3,), [0.9, 0.9, 0.9])
    """
    n = numerics.check_count("n", n, low=1)
    _check_some(ranges)
    u = jax.random.uniform(numerics.key(key), (n, len(ranges)), jnp.float32)
    return _draw(np.asarray(u, np.float64), ranges)


def sobol(n: int, seed: int = 0, **ranges: Any) -> dict[str, np.ndarray]:
    """Draw points of a scrambled Sobol sequence, which cover the ranges evenly.

    Any n points are more even than independent ones; a power of two is best.

    Args:
        n: how many, >= 1.
        seed: of the scrambling, an int >= 0 of any size; all its bits are used.
        ranges: as for `random`.

    Returns:
        name -> column, shape (n,). Fewer points of the same seed are the first of
        these.

    Raises:
        ValueError: if n is below 1, the seed is not an int >= 0, or a range is missing
            or invalid.
        TypeError: if a value is not a number.

    References:
        Owen, Scrambling Sobol' and Niederreiter-Xing points, Journal of Complexity
        14(4), 1998, https://doi.org/10.1006/jcom.1998.0487; scipy's
        ``scipy.stats.qmc.Sobol``.

    Example:
        >>> from fngrad.sweeps.searching.points import sobol, uniform
        >>> points = sobol(4, momentum=uniform(0.0, 1.0))
        >>> sorted((4 * points["momentum"]).astype(int).tolist())
        [0, 1, 2, 3]
    """
    import scipy.stats.qmc as qmc

    n = numerics.check_count("n", n, low=1)
    numerics.check_seed(seed)
    _check_some(ranges)
    # Rounded up to a power of two: scipy warns about other numbers of points.
    is_recent = "rng" in inspect.signature(qmc.Sobol).parameters  # scipy >= 1.15
    generator: Any = {"rng" if is_recent else "seed": np.random.default_rng(seed)}
    sequence = qmc.Sobol(len(ranges), scramble=True, **generator)
    return _draw(sequence.random_base2(math.ceil(math.log2(n)))[:n], ranges)


def check_points(points: Any) -> tuple[Any, int]:
    """Return points as NumPy columns, and how many there are.

    Args:
        points: a pytree of arrays (P, ...), numbers or bools.

    Raises:
        ValueError: if there are no points, columns differ in length, a leaf is a
            scalar or a masked array, or a value is not finite or does not fit in the
            dtype that jax gives it.
        TypeError: if a leaf is not numeric.

    Example:
        >>> from fngrad.sweeps.searching.points import check_points
        >>> columns, count = check_points({"learning_rate": [0.1, 0.2]})
        Traceback (most recent call last):
        ...
        ValueError: need columns (points, ...), got a scalar at 'learning_rate/0': \
sweeps.grid takes numbers and lists of them, sweeps.random ranges
        >>> check_points({"learning_rate": np.array([0.1, 0.2])})[1]
        2
    """
    columns = tree.map_with_path(_numeric, points)
    by_path = tree.leaf_paths(columns)
    if not by_path:
        raise ValueError("need at least one column of points, got an empty tree")
    for path, column in by_path.items():
        if column.ndim == 0:
            raise ValueError(
                f"need columns (points, ...), got a scalar at {path!r}: sweeps.grid "
                "takes numbers and lists of them, sweeps.random ranges"
            )
    lengths = {path: len(column) for path, column in by_path.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"need columns of one length, got {lengths}")
    count = next(iter(lengths.values()))
    if count == 0:
        raise ValueError(f"need at least one point, got columns of lengths {lengths}")
    for path, column in by_path.items():
        _check_values(path, column)
    return columns, count


def _numeric(path: str, leaf: Any) -> np.ndarray:
    leaf = leaf if isinstance(leaf, jax.Array) else unmasked(path, leaf)
    is_number = jnp.issubdtype(leaf.dtype, np.number)
    if not is_number and leaf.dtype != np.bool_:
        raise TypeError(
            f"need numeric points, got {leaf.dtype} at {path!r}: other values belong "
            "in static={name: [values]}"
        )
    return np.asarray(leaf)


def _check_values(path: str, column: np.ndarray) -> None:
    dtype = jax.dtypes.canonicalize_dtype(column.dtype)
    if jnp.issubdtype(column.dtype, np.inexact):
        with np.errstate(over="ignore"):  # such a value raises below
            is_finite = np.isfinite(column.astype(dtype)).reshape(len(column), -1)
        bad = np.flatnonzero(~is_finite.all(axis=1))
        if bad.size:
            raise ValueError(
                f"need points that are finite in {dtype.name}, got {column[bad[0]]} at "
                f"{path!r}"
            )
        return
    if dtype != column.dtype and (column != column.astype(dtype)).any():
        raise ValueError(
            f"need integers that fit in {dtype.name}, got values from {column.min()} "
            f"to {column.max()} at {path!r}"
        )


def _draw(u: np.ndarray, ranges: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: as_range(name, within).quantile(u[:, column])
        for column, (name, within) in enumerate(ranges.items())
    }


def as_range(name: str, within: Any) -> Range:
    """Return a range as it is; numbers, or one, as a choice of them.

    Raises:
        ValueError: if it is a tuple of two numbers, which other libraries take as the
            bounds of a range.
    """
    if isinstance(within, Range):
        return within
    check_no_pair(name, within)
    return choice(_column(name, within).tolist())


def check_no_pair(name: str, values: Any) -> None:
    """Raise if values are a tuple of two numbers.

    Raises:
        ValueError: if they are.
    """
    is_pair = isinstance(values, tuple) and len(values) == 2
    if is_pair and all(numerics.as_int(v) is not None or _is_float(v) for v in values):
        low, high = values
        raise ValueError(
            f"need sweeps.uniform({low}, {high}) or sweeps.log_uniform({low}, {high}) "
            f"for a range, or the list [{low}, {high}] for two values, got the tuple "
            f"{name}={values}"
        )


def _is_float(x: Any) -> bool:
    return isinstance(x, float | np.floating)


def _column(name: str, values: Any) -> np.ndarray:
    """Return the values of an axis as an array; a number is one value."""
    column = _numeric(name, values)
    column = column[None] if column.ndim == 0 else column
    if column.ndim != 1 or not len(column):
        raise ValueError(f"need some numbers for {name!r}, got shape {column.shape}")
    _check_values(name, column)
    return column


def _check_bounds(low: float, high: float) -> None:
    for name, bound in (("low", low), ("high", high)):
        if not isinstance(bound, numbers.Real) or not math.isfinite(float(bound)):
            raise ValueError(f"need a finite number {name}, got {name}={bound!r}")
    if not low < high:
        raise ValueError(f"need low < high, got {low=} {high=}")


def _check_some(axes: dict[str, Any]) -> None:
    if not axes:
        raise ValueError("need at least one hyperparameter, got none")
