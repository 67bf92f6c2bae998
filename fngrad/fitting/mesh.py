"""A run on a mesh: its state, data and evaluation are placed before it begins."""

from collections.abc import Iterable, Mapping
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fngrad.numerics.array_inputs as array_inputs
import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.data.sources import Source
from fngrad.fitting.inputs import check_state
from fngrad.sharding.meshes import BATCH_AXIS, check_mesh
from fngrad.sharding.placement import put, shard_state, shardings
from fngrad.sharding.rules import Rule, axes_of, replicated
from fngrad.training import Step, TrainState
from fngrad.types import Path

_REMEDY = "shard_state(state, mesh, rule) and make_step(rule=rule) share one rule"


def placed_run(
    mesh: Mesh | None, step: Step, state: TrainState, data: Any, eval_data: Any
) -> tuple[TrainState, Any, Any]:
    """Return state and data on a mesh; as they are without one.

    Raises:
        TypeError: as `placed_state`.
        ValueError: as `placed_state`.
        RuntimeError: as `placed_state`.
    """
    if mesh is None:
        return state, data, eval_data
    state = placed_state(step, state, mesh)
    return state, placed_data(data, mesh), placed_data(eval_data, mesh)


def placed_state(step: Step, state: TrainState, mesh: Mesh) -> TrainState:
    """Return the first state of a run on a mesh, placed by the step's rule.

    A state that is on the mesh already stays where it is.

    Args:
        step: from `fngrad.make_step`, which keeps its ``rule``, or any other.
        state: on one device, or on the mesh.
        mesh: with Auto axes.

    Raises:
        TypeError: if the mesh is something else, or as `check_state`.
        ValueError: if the mesh has Explicit axes, a spec does not fit a parameter, or
            the state is on another mesh or placed by another rule.
        RuntimeError: as `check_state`.
    """
    check_mesh(mesh)
    check_state(state)
    rule = getattr(step, "rule", None)
    found = {
        path: leaf.sharding
        for path, leaf in tree.leaf_paths(state).items()
        if isinstance(getattr(leaf, "sharding", None), NamedSharding)
    }
    if not found:
        return shard_state(state, mesh, rule or replicated)
    for path, sharding in found.items():
        if sharding.mesh != mesh:
            raise ValueError(
                f"need a state on the mesh {dict(mesh.shape)}, got {path!r} on "
                f"another, {dict(sharding.mesh.shape)}"
            )
    if hasattr(step, "rule"):
        _check_placement(state, found, mesh, rule)
    return state


def _check_placement(
    state: TrainState, found: dict[str, NamedSharding], mesh: Mesh, rule: Rule | None
) -> None:
    """Raise unless leaves are where a rule places them.

    Without a rule they may be split over any axes but that of the batch.
    """
    leaves = tree.leaf_paths(state)
    wanted = tree.leaf_paths(shardings(state, mesh, rule or replicated))
    for path, sharding in found.items():
        rank = leaves[path].ndim
        if rule is not None and not sharding.is_equivalent_to(wanted[path], rank):
            raise ValueError(
                f"need {path!r} split as the step's rule splits it, by "
                f"{wanted[path].spec}, got {sharding.spec}: {_REMEDY}"
            )
        if rule is None and any(BATCH_AXIS in axes_of(e) for e in sharding.spec):
            raise ValueError(
                f"need a step with a rule for a state that is split over "
                f"{BATCH_AXIS!r}, got one without for {path!r}, {sharding.spec}: "
                f"{_REMEDY}"
            )


def placed_data(data: Any, mesh: Mesh) -> Any:
    """Return arrays, a dataset or a source on a mesh; anything else as it is.

    Arrays are whole on every device, which takes its part of each batch from them;
    those on the mesh already stay where they are. A source puts its part of a batch on
    each device. An iterable is not touched.
    """
    if isinstance(data, Source):
        return data.on(mesh)
    if isinstance(data, Iterable) and not isinstance(data, Dataset | Mapping):
        return data
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path: Path, x: Any) -> Any:
        is_there = isinstance(getattr(x, "sharding", None), NamedSharding)
        if is_there or not hasattr(x, "dtype"):
            return x
        return put(x if tree.is_key(x) else array_inputs.array(path, x), whole)

    return tree.map_with_path(place, data)
