"""Divergence: what it is, and steps that keep the last good state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.training import Step, TrainState
from fngrad.types import Batch, Metrics, Scalar

CHECKED = ("is_finite", "loss")  # metrics that show whether a run has diverged


def freeze_diverged(step: Step, bound: Scalar | None = None) -> Step:
    """Keep the last good state of a run that diverges.

    A step is refused if its metrics show divergence (see `has_diverged`), or if it
    would put a NaN or an infinity into an entry of the state that was finite. Then
    every bit of the old state is kept, also of its step counter. A step is a function
    of the state, so all later steps are the same refused step: the run is frozen,
    without an effect on other runs under ``vmap``.

    `fngrad.skip_nonfinite` continues with the next batch instead.

    Args:
        step: from `fngrad.make_step`, or any step whose batch depends only on the
            state, as in `fngrad.run` over a dataset.
        bound: the largest good loss; None allows any finite loss. It may be data: an
            array or a tracer.

    Returns:
        A step with the same metrics, those of the refused step; ``is_finite`` is
        false from the first refused step on, also beyond a bound.

    Raises:
        TypeError: if the bound is not a number.
        ValueError: while tracing, if there is a bound, but no metric ``loss``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.steps.divergence import freeze_diverged
        >>> optimizer = fg.sgd(3.0)  # |w| doubles and more with every step
        >>> step = fg.make_step(lambda w, batch: w**2, optimizer)
        >>> step = freeze_diverged(step, bound=100.0)
        >>> state = fg.init_state(jnp.array(1.0), optimizer, key=0)
        >>> state, history = fg.run(step, state, lambda step: (), 5)
        >>> print(state.step, state.params, history["is_finite"])
        2 25.0 [ True  True False False False]
    """
    numerics.check_number("bound", bound)

    def frozen(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(state, batch)
        is_good = ~has_diverged(metrics, bound) & tree.stays_finite(state, new_state)
        return tree.where(is_good, new_state, state), {**metrics, "is_finite": is_good}

    return frozen


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
