"""The metrics of a training step: scalars by name."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.training.loss_forms import Value
from fngrad.types import Key, Metrics, OptState, Params, Updates


class LossAtStart(NamedTuple):
    """The loss and its gradient at the parameters where a step begins."""

    trainable: Any  # which leaves are trained, a tree of bools
    key: Key  # of every evaluation in this step
    value: Value  # at the parameters
    grads: Updates  # at the parameters; zero for leaves that are not trained
    scale: jax.Array | None = None  # of the loss; see `fngrad.loss_scaling`


class Move(NamedTuple):
    """The result of a step."""

    params: Params
    opt_state: OptState
    updates: Updates  # params minus the old parameters
    reports: Metrics  # of the optimizer


def standard_metrics(
    start: LossAtStart, move: Move, *, params: Params, more: Metrics, norms: bool
) -> Metrics:
    """Return the metrics of a step, see `fngrad.make_step`.

    Args:
        start: the loss, its gradient, and which leaves the norms cover.
        move: the updates, and the optimizer's reports.
        params: the parameters before the step.
        more: further metrics of the step.
        norms: whether to include the global norms.

    Raises:
        ValueError: if two metrics have one name.
    """
    trainable, loss = start.trainable, start.value.loss
    vectors = {
        "grad_norm": start.grads,
        "update_norm": move.updates,
        "param_norm": params,
    }
    sizes: Metrics = {}
    is_finite = jnp.isfinite(loss)
    if norms:
        sizes = {k: tree.norm(tree.keep(trainable, x)) for k, x in vectors.items()}
        is_finite &= jnp.isfinite(sizes["grad_norm"])
        is_finite &= jnp.isfinite(sizes["update_norm"])
        added = [sizes["update_norm"]]  # finite where the updates are
    else:
        added = jax.tree.leaves(tree.keep(trainable, move.updates))
    is_sound = _is_sound(is_finite, move.reports, added)
    reports = _with_learning_rate(move.reports)
    groups = [{"loss": loss}, reports, {"is_finite": is_sound}, sizes, more]
    return union([*groups, start.value.metrics])


def union(groups: list[Metrics]) -> Metrics:
    """Return all metrics in one dict.

    Raises:
        ValueError: if two metrics have one name.
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


def _with_learning_rate(reports: Metrics) -> Metrics:
    """Return the reports, the first learning rate under the name ``learning_rate``."""
    in_force = queries.reported(reports, "scale_by_learning_rate/learning_rate")
    rates = list(in_force or queries.reported(reports, "learning_rate"))
    return {
        "learning_rate" if path in rates[:1] else path: value
        for path, value in reports.items()
    }


def _is_sound(is_finite: jax.Array, reports: Metrics, added: list) -> jax.Array:
    """Return whether a step is sound.

    For a step that `skip_nonfinite` skipped: whether the added updates are finite and
    the limit of skips is not exceeded; for any other: ``is_finite``.
    """
    limits = queries.reported(reports, "gave_up")
    if not limits:
        return is_finite
    counts = [reports[path.removesuffix("gave_up") + "consecutive"] for path in limits]
    is_skipped = jnp.any(jnp.array(counts) > 0)
    gave_up = jnp.any(jnp.array(list(limits.values())) > 0)
    finite = [jnp.all(jnp.isfinite(x)) for x in added]
    is_safe = jnp.all(jnp.array(finite)) & ~gave_up
    return jnp.where(is_skipped, is_safe, is_finite)
