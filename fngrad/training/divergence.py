"""Which metrics show that a step or a run has gone bad, and how."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
from fngrad.types import Metrics, Scalar

VERDICT = "is_finite"  # a step's own answer; true where a bad update was skipped
CHECKED = (VERDICT, "loss")  # metrics that show whether a run has diverged
NUMBERS = ("loss", "grad_norm", "update_norm")  # in which a step's fault shows


def has_diverged(metrics: Metrics, bound: Scalar | None = None) -> jax.Array:
    """Return whether a step's metrics say that the run has diverged.

    It has where ``is_finite`` is false, or where ``loss`` is not finite or not at most
    ``bound``.

    Raises:
        ValueError: if there is a bound, but no metric ``loss``.
    """
    bad = [is_bad(metrics[name]) for name in CHECKED if name in metrics]
    if bound is not None:
        if "loss" not in metrics:
            raise ValueError(f"need a metric loss to bound, got {sorted(metrics)}")
        largest = numerics.hyper(bound).astype(metrics["loss"].dtype)
        bad.append(~(metrics["loss"] <= largest))
    return functools.reduce(jnp.logical_or, bad, jnp.zeros((), bool))


def is_bad(values: Any) -> Any:
    """Return where a metric is bad: where a bool is false, or a number not finite.

    Args:
        values: of one step or many, of JAX or of NumPy.
    """
    xp = np if isinstance(values, np.ndarray) else jnp
    return ~values if values.dtype == np.bool_ else ~xp.isfinite(values)


def bad_steps(history: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Return whether each of the last steps is bad, of shape (count,).

    A step that has no ``is_finite``, since it is not from `fngrad.make_step`, is bad
    where its ``loss`` is not finite; without a loss no step is.

    Args:
        history: scalars by name, one record per step.
        count: how many steps.
    """
    if VERDICT in history:
        return ~history[VERDICT][-count:].astype(bool)
    return (
        is_bad(history["loss"][-count:]) if "loss" in history else np.zeros(count, bool)
    )


def faults(metrics: Metrics) -> list[str]:
    """Return the names of the numbers of a step that are not finite."""
    return [name for name in NUMBERS if name in metrics and is_bad(metrics[name])]
