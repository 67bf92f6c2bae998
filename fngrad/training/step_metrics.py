"""The metrics of a training step: scalars by name."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import fngrad.transforms.queries as queries
import fngrad.transforms.structure as structure
import fngrad.tree as tree
from fngrad.training.loss_forms import Value
from fngrad.transforms.core import Transform
from fngrad.types import Key, Metrics, OptState, Params, Path, Updates

# Global norms, none, or global norms and those of the layers that globs select.
WhichMetrics: TypeAlias = Literal["norms", "loss"] | Sequence[str]


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


def check_metrics(metrics: WhichMetrics) -> WhichMetrics:
    """Return the argument ``metrics`` of a step, which `fngrad.make_step` describes.

    Raises:
        TypeError: if it is not a string or a list of strings.
        ValueError: if it is an unknown string, or an empty list.
    """
    if isinstance(metrics, str):
        if metrics not in ("norms", "loss"):
            raise ValueError(
                f'need metrics="norms" or "loss", got {metrics=}; globs over the paths '
                f"of layers are given as a list: metrics=[{metrics!r}]"
            )
        return metrics
    is_list = isinstance(metrics, list | tuple)
    if not is_list or not all(isinstance(glob, str) for glob in metrics):
        raise TypeError(
            'need metrics="norms" or "loss", or a list of globs over the paths of '
            f"layers, got {metrics!r}"
        )
    if not metrics:
        raise ValueError(f'need at least one glob, or metrics="norms", got {metrics=}')
    return tuple(metrics)


def standard_metrics(
    transform: Transform,
    start: LossAtStart,
    move: Move,
    *,
    params: Params,
    more: Metrics,
    metrics: WhichMetrics,
) -> Metrics:
    """Return the metrics of a step, see `fngrad.make_step`.

    Args:
        transform: the optimizer, for the names of its groups.
        start: the loss, its gradient, and which leaves the norms cover.
        move: the updates, and the optimizer's reports.
        params: the parameters before the step.
        more: further metrics of the step.
        metrics: which norms to include, from `check_metrics`.

    Raises:
        ValueError: if two metrics have one name, or a glob selects no layer.
    """
    trainable, loss = start.trainable, start.value.loss
    vectors = {
        "grad_norm": start.grads,
        "update_norm": move.updates,
        "param_norm": params,
    }
    kept = {name: tree.keep(trainable, x) for name, x in vectors.items()}
    sizes: Metrics = {}
    is_finite = jnp.isfinite(loss)
    if metrics != "loss":
        sizes = {name: tree.norm(x) for name, x in kept.items()}
        is_finite &= jnp.isfinite(sizes["grad_norm"])
        is_finite &= jnp.isfinite(sizes["update_norm"])
        added = [sizes["update_norm"]]  # finite where the updates are
    else:
        added = jax.tree.leaves(kept["update_norm"])
    is_sound = _is_sound(is_finite, move.reports, added)
    reports = _with_learning_rates(move.reports, transform)
    by_layer = {} if isinstance(metrics, str) else _norms_by_layer(metrics, kept)
    ours = [{"loss": loss}, reports, {"is_finite": is_sound}, sizes, by_layer, more]
    return union([*ours, start.value.metrics])


def _norms_by_layer(globs: Sequence[str], vectors: dict[str, Any]) -> Metrics:
    """Return the norms of trees by name, such as ``grad_norm/blocks/0``."""
    return {
        f"{name}/{path}": tree.norm(leaves)
        for name, x in vectors.items()
        for path, leaves in tree.by_layer(globs, x).items()
    }


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


def _with_learning_rates(reports: Metrics, transform: Transform) -> Metrics:
    """Return the reports, with the learning rates in force under short names.

    The first of each group is ``learning_rate/<group>``. The first of all is
    ``learning_rate``, unless groups may have different ones.
    """
    groups = [*structure.partitions_of(transform)]
    in_force = queries.reported(reports, "scale_by_learning_rate/learning_rate")
    rates = [*in_force, *queries.reported(reports, "learning_rate")]
    first: dict[str, Path] = {}  # by group
    for path in rates:
        first.setdefault(_group_of(path, groups), path)
    names = {path: f"learning_rate/{group}" for group, path in first.items() if group}
    is_one = len(first) < 2 or (
        set(rates) == in_force.keys() and structure.has_one_learning_rate(transform)
    )
    short = rates[:1] if is_one else []
    left = [path for path in reports if path in names or path not in short]
    told = {names.get(path, path): reports[path] for path in left}
    return {"learning_rate": reports[rates[0]], **told} if short else told


def _group_of(path: Path, groups: list[tuple[str, str]]) -> str:
    """Return the group of a report, ``outer/inner`` for a group inside of a group.

    Of the globs "*" and "*/w", the path of a report may begin with both: the longest is
    that of its group.
    """
    labels: list[str] = []
    rest = f"/{path}"
    while found := [group for group in groups if f"/{'/'.join(group)}/" in rest]:
        places = ((rest.index(f"/{'/'.join(g)}/"), -len(g[1]), g) for g in found)
        _, _, (part, label) = min(places)
        labels.append(label)
        rest = "/" + rest.split(f"/{part}/{label}/", 1)[1]
    return "/".join(labels)


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
