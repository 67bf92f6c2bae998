"""What a training step tells about itself: scalars by name."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.training.loss_forms import Value
from fngrad.types import Key, Metrics, OptState, Params, Updates


class Start(NamedTuple):
    """Where a step begins."""

    learned: Any  # which leaves move, a tree of bools
    key: Key  # of every evaluation in this step
    value: Value  # at the parameters
    grads: Updates  # at the parameters; zero where nothing is learned


class Move(NamedTuple):
    """What a step did."""

    params: Params
    opt_state: OptState
    updates: Updates  # params minus the old ones
    told: Metrics  # what the optimizer reports of it


def standard_metrics(
    start: Start, move: Move, params: Params, more: Metrics, *, norms: bool = True
) -> Metrics:
    """Return what every step reports, see `fngrad.make_step`.

    Args:
        start: the loss, its gradient, and which leaves the norms cover.
        move: the updates, and what the optimizer reports of them.
        params: the parameters before the step.
        more: what the step has to tell beyond that.
        norms: whether to report the global norms.

    Raises:
        ValueError: two metrics have one name.
    """
    learned, loss = start.learned, start.value.loss
    sizes = {
        "grad_norm": start.grads,
        "update_norm": move.updates,
        "param_norm": params,
    }
    measured: Metrics = {}
    is_finite, moved = jnp.isfinite(loss), tree.keep(learned, move.updates)
    if norms:
        measured = {k: tree.norm(tree.keep(learned, x)) for k, x in sizes.items()}
        moved = measured["update_norm"]
        is_finite &= jnp.isfinite(measured["grad_norm"]) & jnp.isfinite(moved)
    is_sound = _is_sound(is_finite, move.told, moved)
    reports = _with_learning_rate(move.told)
    groups = [{"loss": loss}, reports, {"is_finite": is_sound}, measured, more]
    return union([*groups, start.value.metrics])


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


def _with_learning_rate(told: Metrics) -> Metrics:
    """Return the reports, the first learning rate under its own name."""
    inner = "scale_by_learning_rate/learning_rate"  # in force, schedules applied
    rates = [name for name in told if name.endswith(inner)]
    rates = rates or [name for name in told if name.endswith("/learning_rate")]
    return {
        "learning_rate" if name in rates[:1] else name: value
        for name, value in told.items()
    }


def _is_sound(is_finite: jax.Array, told: Metrics, moves: Any) -> jax.Array:
    """Return ``is_finite``, or for a step that `skip_nonfinite` skipped whether all is
    well still: what was added is finite, and the limit of skips is not passed.
    """
    limits = [name for name in told if name.endswith("/gave_up")]
    if not limits:
        return is_finite
    counts = [name.removesuffix("gave_up") + "consecutive" for name in limits]
    skips = jnp.any(jnp.array([told[name] > 0 for name in counts]))
    gave_up = jnp.any(jnp.array([told[name] > 0 for name in limits]))
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(moves)]
    is_safe = jnp.all(jnp.array(finite)) & ~gave_up
    return jnp.where(skips, is_safe, is_finite)
