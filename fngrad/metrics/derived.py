"""Metrics that are functions of an accumulator: a root, a quotient, a mean of classes.

The parts are merged as they are, and the function is applied once, to the whole.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from fngrad.metrics.accumulators import Accumulator


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["parts"],
    meta_fields=["measure", "settings"],
)
@dataclasses.dataclass(frozen=True)
class Derived:
    """A function of an accumulator.

    Args:
        parts: what is merged.
        measure: ``measure(parts, *settings)`` gives the metric; a function with a name
            of its own, since one that is made anew at each call, such as a lambda in a
            ``metric_fn``, makes accumulators that cannot be merged.
        settings: hashable values, which choose the program.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import metrics
        >>> def root(parts):
        ...     return jnp.sqrt(parts.value())
        >>> x, y = jnp.array([1.0, 5.0]), jnp.array([1.0, 1.0])
        >>> errors = [
        ...     metrics.Derived(metrics.mean_squared_error(x[i], y[i]), root)
        ...     for i in (slice(0, 1), slice(1, 2))
        ... ]
        >>> print(errors[0].merge(errors[1]).value())
        2.828427
    """

    parts: Any  # an Accumulator
    measure: Callable[..., jax.Array]
    settings: tuple[Any, ...] = ()

    @property
    def grows(self) -> bool:
        """Return whether the parts grow when they are merged."""
        return grows(self.parts)

    def merge(self, other: "Derived") -> "Derived":
        """Return the function of both parts together.

        Raises:
            ValueError: if the parts were measured with other functions or settings.
        """
        mine, theirs = (self.measure, self.settings), (other.measure, other.settings)
        if mine != theirs:
            raise ValueError(
                "need parts of one metric to merge, got "
                f"{self.measure.__name__}{self.settings} and "
                f"{other.measure.__name__}{other.settings}: give the function a name "
                "outside of metric_fn"
            )
        return dataclasses.replace(self, parts=self.parts.merge(other.parts))

    def value(self) -> jax.Array:
        """Return the metric."""
        return self.measure(self.parts, *self.settings)


def grows(accumulator: Accumulator) -> bool:
    """Return whether an accumulator keeps its examples, one row per example.

    Such an accumulator has the attribute ``grows``, True, and its ``merge`` joins every
    array along the first axis.
    """
    return bool(getattr(accumulator, "grows", False))
