"""What a training step tells about itself: scalars by name."""

from typing import Any

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.objective import Value
from fngrad.transforms.core import Transform, report
from fngrad.types import Metrics, OptState, Params, Updates


def standard_metrics(
    transform: Transform,
    value: Value,
    learned: Any,
    grads: Updates,
    updates: Updates,
    opt_state: OptState,
    params: Params,
    *,
    norms: bool = True,
    given: Updates | None = None,
    more: Metrics | None = None,
) -> Metrics:
    """Return what every step reports, see `fngrad.make_step`.

    Args:
        transform: what made the updates.
        value: the loss and the user's metrics.
        learned: a tree of bools, which leaves the norms cover.
        grads: the gradient of the loss.
        updates: what was added to the parameters.
        opt_state: the optimizer's state before the step.
        params: the parameters before the step.
        norms: whether to report the global norms.
        given: what the transform was given where that is not the gradient.
        more: what the step has to tell beyond that.

    Raises:
        ValueError: two metrics have one name.
    """
    seen = grads if given is None else given
    reports = _read_report(transform, seen, opt_state, params)
    measured = _measure(norms, value.loss, learned, grads, updates, params)
    moves = tree.keep(learned, updates)
    measured["is_finite"] = _is_sound(measured["is_finite"], reports, moves)
    return union(
        [
            {"loss": value.loss},
            reports,
            measured,
            more or {},
            value.metrics,
        ]
    )


def union(groups: list[Metrics]) -> Metrics:
    """Return all metrics in one dict.

    Raises:
        ValueError: two have one name.
    """
    together: Metrics = {}
    for group in groups:
        for name, value in group.items():
            if name in together:
                raise ValueError(
                    f"need metric names that are not taken, got a second {name!r}"
                )
            together[name] = jnp.asarray(value)
    return together


def _read_report(
    transform: Transform, grads: Updates, opt_state: OptState, params: Params
) -> Metrics:
    """Return the transforms' reports, the first learning rate under its own name."""
    reports = report(transform, grads, opt_state, params)
    inner = "scale_by_learning_rate/learning_rate"  # in force, schedules applied
    rates = [name for name in reports if name.endswith(inner)]
    rates = rates or [name for name in reports if name.endswith("/learning_rate")]
    return {
        "learning_rate" if name in rates[:1] else name: value
        for name, value in reports.items()
    }


def _is_sound(is_finite: jax.Array, reports: Metrics, moves: Updates) -> jax.Array:
    """Return ``is_finite``, or for a step that `skip_nonfinite` skipped whether all is
    well still: what was added is finite, and the limit of skips is not passed.
    """
    limits = [name for name in reports if name.endswith("/gave_up")]
    if not limits:
        return is_finite
    counts = [name.removesuffix("gave_up") + "consecutive" for name in limits]
    skips = jnp.any(jnp.array([reports[name] > 0 for name in counts]))
    gave_up = jnp.any(jnp.array([reports[name] > 0 for name in limits]))
    is_safe = jnp.isfinite(tree.norm(moves)) & ~gave_up
    return jnp.where(skips, is_safe, is_finite)


def _measure(
    norms: bool, loss: Any, learned: Any, grads: Any, updates: Any, params: Params
) -> Metrics:
    if not norms:
        return {"is_finite": jnp.isfinite(loss)}
    grad_norm = tree.norm(tree.keep(learned, grads))
    update_norm = tree.norm(tree.keep(learned, updates))
    sizes = jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
    return {
        "is_finite": jnp.isfinite(loss) & sizes,
        "grad_norm": grad_norm,
        "update_norm": update_norm,
        "param_norm": tree.norm(tree.keep(learned, params)),
    }
