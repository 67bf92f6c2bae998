"""Accumulators: what is kept of the examples that have been measured.

The protocol is explained in `fngrad.metrics`. Each sum is kept as a pair: the field
that bears its name, and what rounding drops from it in ``rest``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.metrics.sums import Pair, add_pairs


class Accumulator(Protocol):
    """What can be merged and has a value."""

    def merge(self, other: Self) -> Self:
        """Return the accumulator of both parts together."""
        ...

    def value(self) -> jax.Array:
        """Return the metric."""
        ...


def _missing(self: Any, name: str) -> Any:
    """Explain where the number is, for an accumulator that is used as one."""
    kind = type(self).__name__
    raise AttributeError(
        f"need an attribute of the accumulator {kind}, got {name!r}: .value() gives "
        "the metric as an array"
    )


class _Mean(NamedTuple):
    total: jax.Array  # sum of w x
    weight: jax.Array  # sum of w
    rest: tuple[jax.Array, ...]  # of both sums


class Mean(_Mean):
    r"""A weighted mean, $\sum_i w_i x_i / \sum_i w_i$.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.metrics import Mean
        >>> parts = Mean(jnp.array(6.0), jnp.array(3.0)), Mean(jnp.array(4.0), 1.0)
        >>> print(parts[0].merge(parts[1]).value())
        2.5
    """

    __slots__ = ()
    __getattr__ = _missing

    def __new__(cls, total: Any, weight: Any, rest: Any = None) -> "Mean":
        """Take the sums as they are; the default rest is 0."""
        return super().__new__(cls, total, weight, _rest(rest, total, weight))

    def merge(self, other: "Mean") -> "Mean":
        """Return the mean of both parts together."""
        return Mean(*_merged(self, other))

    def value(self) -> jax.Array:
        """Return the mean; NaN if there was no weight."""
        return _ratio(*_rounded(self))


class _R2(NamedTuple):
    weight: jax.Array  # sum of w, per output
    mean: jax.Array  # of the targets, per output
    m2: jax.Array  # sum of w (y - mean)**2, per output
    squared_error: jax.Array  # sum of w (x - y)**2, per output
    rest: tuple[jax.Array, ...]  # of all four


class R2(_R2):
    """Targets' spread and predictions' error, for the share of variance explained."""

    __slots__ = ()
    __getattr__ = _missing

    def __new__(
        cls, weight: Any, mean: Any, m2: Any, squared_error: Any, rest: Any = None
    ) -> "R2":
        """Take the sums as they are; the default rest is 0."""
        rest = _rest(rest, weight, mean, m2, squared_error)
        return super().__new__(cls, weight, mean, m2, squared_error, rest)

    def merge(self, other: "R2") -> "R2":
        """Return both parts together; the means never cancel in float32.

        References:
            Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
            computing sample variances, 1979, equations 2.1.
        """
        weight, _, m2, error = (
            add_pairs(a, b) for a, b in zip(_pairs(self), _pairs(other), strict=True)
        )
        share = numerics.divide(other.weight, weight[0])
        delta = (other.mean - self.mean) + (other.rest[1] - self.rest[1])
        mean = add_pairs((self.mean, self.rest[1]), _exact(share * delta))
        m2 = add_pairs(m2, _exact(self.weight * share * delta**2))
        totals, rest = zip(weight, mean, m2, error, strict=True)
        return R2(*totals, rest)

    def value(self) -> jax.Array:
        r"""Return $1 - \sum (x - y)^2 / \sum (y - \bar y)^2$, the mean over outputs.

        Of constant targets: 1 where the predictions are exact, else 0. NaN if there
        was no weight.
        """
        weight, _, m2, squared_error = _rounded(self)
        is_constant = m2 == 0
        unexplained = squared_error / jnp.where(is_constant, 1, m2)
        is_missed = (squared_error != 0).astype(unexplained.dtype)
        r2 = 1 - jnp.where(is_constant, is_missed, unexplained)
        return jnp.mean(jnp.where(weight == 0, jnp.nan, r2))


class _CalibrationError(NamedTuple):
    weight: jax.Array  # sum of w
    confidence: jax.Array  # sum of w p
    correct: jax.Array  # sum of w [the prediction is right]
    rest: tuple[jax.Array, ...]  # of all three


class CalibrationError(_CalibrationError):
    """Confidence and accuracy in bins of confidence, each of shape (bins,)."""

    __slots__ = ()
    __getattr__ = _missing

    def __new__(
        cls, weight: Any, confidence: Any, correct: Any, rest: Any = None
    ) -> "CalibrationError":
        """Take the sums as they are; the default rest is 0."""
        rest = _rest(rest, weight, confidence, correct)
        return super().__new__(cls, weight, confidence, correct, rest)

    def merge(self, other: "CalibrationError") -> "CalibrationError":
        """Return both parts together."""
        return CalibrationError(*_merged(self, other))

    def value(self) -> jax.Array:
        """Return the expected calibration error; NaN if there was no weight."""
        gaps = self.confidence - self.correct + (self.rest[1] - self.rest[2])
        return _ratio(jnp.sum(jnp.abs(gaps)), jnp.sum(_rounded(self)[0]))


class _ConfusionMatrix(NamedTuple):
    counts: jax.Array  # sum of w, shape (true class, predicted class)
    rest: tuple[jax.Array, ...]


class ConfusionMatrix(_ConfusionMatrix):
    """How often each class was predicted for each true class."""

    __slots__ = ()
    __getattr__ = _missing

    def __new__(cls, counts: Any, rest: Any = None) -> "ConfusionMatrix":
        """Take the counts as they are; the default rest is 0."""
        return super().__new__(cls, counts, _rest(rest, counts))

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Return both parts together."""
        return ConfusionMatrix(*_merged(self, other))

    def value(self) -> jax.Array:
        """Return the counts, rows true and columns predicted classes."""
        return _rounded(self)[0]


class Rows(NamedTuple):
    """Examples as they were measured, for metrics of their order."""

    x: jax.Array  # scores or predictions, shape (n, columns)
    y: jax.Array  # labels, shape (n,), or targets, shape (n, columns)
    weight: jax.Array  # shape (n,), 0 for what does not count

    @property
    def grows(self) -> bool:
        """Return True: merging adds rows."""
        return True

    def merge(self, other: "Rows") -> "Rows":
        """Return the rows of both parts."""
        return Rows(*(jnp.concatenate(pair) for pair in zip(self, other, strict=True)))

    def value(self) -> jax.Array:
        """Return what was measured."""
        return self.x


class _BinnedScores(NamedTuple):
    positive: jax.Array  # sum of w, shape (columns, bins)
    negative: jax.Array  # sum of w, shape (columns, bins)
    rest: tuple[jax.Array, ...]  # of both


class BinnedScores(_BinnedScores):
    """How many positive and negative examples have their score in each bin."""

    __slots__ = ()
    __getattr__ = _missing

    def __new__(cls, positive: Any, negative: Any, rest: Any = None) -> "BinnedScores":
        """Take the sums as they are; the default rest is 0."""
        rest = _rest(rest, positive, negative)
        return super().__new__(cls, positive, negative, rest)

    def merge(self, other: "BinnedScores") -> "BinnedScores":
        """Return both parts together."""
        return BinnedScores(*_merged(self, other))

    def value(self) -> jax.Array:
        """Return the sums, shape (2, columns, bins)."""
        return jnp.stack(_rounded(self))


class _Correlation(NamedTuple):
    weight: jax.Array  # sum of w, per output
    mean_x: jax.Array
    mean_y: jax.Array
    xx: jax.Array  # sum of w (x - mean_x)**2, per output
    yy: jax.Array  # sum of w (y - mean_y)**2, per output
    xy: jax.Array  # sum of w (x - mean_x) (y - mean_y), per output
    rest: tuple[jax.Array, ...]  # of all six


class Correlation(_Correlation):
    """Means and centered products of predictions and targets."""

    __slots__ = ()
    __getattr__ = _missing

    def __new__(
        cls,
        weight: Any,
        mean_x: Any,
        mean_y: Any,
        xx: Any,
        yy: Any,
        xy: Any,
        rest: Any = None,
    ) -> "Correlation":
        """Take the sums as they are; the default rest is 0."""
        sums = weight, mean_x, mean_y, xx, yy, xy
        return super().__new__(cls, *sums, _rest(rest, *sums))

    def merge(self, other: "Correlation") -> "Correlation":
        """Return both parts together; the means never cancel in float32.

        References:
            Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
            computing sample variances, 1979, equations 2.1.
        """
        mine, theirs = _pairs(self), _pairs(other)
        weight, _, _, *products = map(add_pairs, mine, theirs)
        share = numerics.divide(other.weight, weight[0])
        deltas = [
            (b[0] - a[0]) + (b[1] - a[1])
            for a, b in zip(mine[1:3], theirs[1:3], strict=True)
        ]
        means = [
            add_pairs(mean, _exact(share * delta))
            for mean, delta in zip(mine[1:3], deltas, strict=True)
        ]
        (dx, dy), shift = deltas, self.weight * share
        xx, yy, xy = (
            add_pairs(total, _exact(shift * product))
            for total, product in zip(
                products, (dx * dx, dy * dy, dx * dy), strict=True
            )
        )
        totals, rest = zip(weight, *means, xx, yy, xy, strict=True)
        return Correlation._make((*totals, rest))

    def value(self) -> jax.Array:
        """Return the correlation, the mean over outputs; NaN where one is constant."""
        weight, _, _, xx, yy, xy = _rounded(self)
        spread = jnp.sqrt(xx) * jnp.sqrt(yy)
        is_void = (weight == 0) | (spread == 0)
        correlation = jnp.clip(xy / jnp.where(is_void, 1, spread), -1, 1)
        return jnp.mean(jnp.where(is_void, jnp.nan, correlation))


def _rest(given: Any, *sums: Any) -> Any:
    """Return the given rest, else zeros like the sums."""
    if given is not None:
        return given

    def nothing(x: Any) -> Any:  # a tree of specifications has no arrays
        is_number = hasattr(x, "dtype") or isinstance(x, int | float)
        return jnp.zeros_like(x) if is_number else x

    return tuple(map(nothing, sums))


def _pairs(accumulator: Any) -> Sequence[Pair]:
    *totals, rest = accumulator
    return list(zip(totals, rest, strict=True))


def _merged(a: Any, b: Any) -> list[Any]:
    """Return the added sums of both, and their rest."""
    sums = map(add_pairs, _pairs(a), _pairs(b))
    totals, rest = zip(*sums, strict=True)
    return [*totals, rest]


def _rounded(accumulator: Any) -> list[jax.Array]:
    """Return the sums; added over devices, the rest may have grown into them."""
    return [total + rest for total, rest in _pairs(accumulator)]


def _exact(x: jax.Array) -> Pair:
    return x, jnp.zeros_like(x)


def _ratio(total: jax.Array, weight: jax.Array) -> jax.Array:
    is_empty = weight == 0
    return jnp.where(is_empty, jnp.nan, total / jnp.where(is_empty, 1, weight))
