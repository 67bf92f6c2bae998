"""Accumulators: what is kept of the examples that have been measured.

The protocol is explained in `fngrad.metrics`.
"""

from typing import NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics


class Accumulator(Protocol):
    """What can be merged and has a value."""

    def merge(self, other: Self) -> Self:
        """Return the accumulator of both parts together."""
        ...

    def value(self) -> jax.Array:
        """Return the metric."""
        ...


class Mean(NamedTuple):
    r"""A weighted mean, $\sum_i w_i x_i / \sum_i w_i$.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.metrics import Mean
        >>> parts = Mean(jnp.array(6.0), jnp.array(3.0)), Mean(jnp.array(4.0), 1.0)
        >>> print(parts[0].merge(parts[1]).value())
        2.5
    """

    total: jax.Array  # sum of w x
    weight: jax.Array  # sum of w

    def merge(self, other: "Mean") -> "Mean":
        """Return the mean of both parts together."""
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> jax.Array:
        """Return the mean; NaN if there was no weight."""
        return _ratio(self.total, self.weight)


class R2(NamedTuple):
    """Targets' spread and predictions' error, for the share of variance explained."""

    weight: jax.Array  # sum of w, per output
    mean: jax.Array  # of the targets, per output
    m2: jax.Array  # sum of w (y - mean)**2, per output
    squared_error: jax.Array  # sum of w (x - y)**2, per output

    def merge(self, other: "R2") -> "R2":
        """Return both parts together; the means never cancel in float32.

        References:
            Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
            computing sample variances, 1979, equations 2.1.
        """
        weight = self.weight + other.weight
        share = numerics.divide(other.weight, weight)
        delta = other.mean - self.mean
        return R2(
            weight,
            self.mean + share * delta,
            self.m2 + other.m2 + self.weight * share * delta**2,
            self.squared_error + other.squared_error,
        )

    def value(self) -> jax.Array:
        r"""Return $1 - \sum (x - y)^2 / \sum (y - \bar y)^2$, the mean over outputs.

        Of constant targets: 1 where the predictions are exact, else 0. NaN if there
        was no weight.
        """
        is_constant = self.m2 == 0
        unexplained = self.squared_error / jnp.where(is_constant, 1, self.m2)
        is_missed = (self.squared_error != 0).astype(unexplained.dtype)
        r2 = 1 - jnp.where(is_constant, is_missed, unexplained)
        return jnp.mean(jnp.where(self.weight == 0, jnp.nan, r2))


class CalibrationError(NamedTuple):
    """Confidence and accuracy in bins of confidence, each of shape (bins,)."""

    weight: jax.Array  # sum of w
    confidence: jax.Array  # sum of w p
    correct: jax.Array  # sum of w [the prediction is right]

    def merge(self, other: "CalibrationError") -> "CalibrationError":
        """Return both parts together."""
        return CalibrationError(*map(jnp.add, self, other))

    def value(self) -> jax.Array:
        """Return the expected calibration error; NaN if there was no weight."""
        gaps = jnp.abs(self.confidence - self.correct)
        return _ratio(jnp.sum(gaps), jnp.sum(self.weight))


class ConfusionMatrix(NamedTuple):
    """How often each class was taken for each."""

    counts: jax.Array  # sum of w, shape (true class, predicted class)

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Return both parts together."""
        return ConfusionMatrix(self.counts + other.counts)

    def value(self) -> jax.Array:
        """Return the counts, rows true and columns predicted classes."""
        return self.counts


def _ratio(total: jax.Array, weight: jax.Array) -> jax.Array:
    is_empty = weight == 0
    return jnp.where(is_empty, jnp.nan, total / jnp.where(is_empty, 1, weight))
