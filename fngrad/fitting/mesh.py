"""A run on a mesh: its state, data and evaluation are placed before it begins."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

import fngrad.numerics.array_inputs as array_inputs
import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.data.sources import Source
from fngrad.distributed import processes
from fngrad.fitting.inputs import check_state
from fngrad.programs.caller_warnings import warn
from fngrad.sharding.meshes import BATCH_AXIS, auto_mesh_of, check_devices
from fngrad.sharding.placement import is_on, is_on_a_mesh, put, shard_state, shardings
from fngrad.sharding.rules import (
    Rule,
    axes_of,
    made_with,
    replicated,
    rule_of,
    rule_of_function,
)
from fngrad.training import Step, TrainState
from fngrad.training.metric_folds import check_examples
from fngrad.types import Params, Path

_REMEDY = "shard_state(state, mesh, rule) and make_step(rule=rule) share one rule"


def placed_run(
    mesh: Mesh | None, step: Step, state: TrainState, data: Any, eval_data: Any
) -> tuple[Mesh | None, TrainState, Any, Any]:
    """Return the mesh of a run, and its state and data on it.

    Without a mesh it is that of the state or the one of `jax.set_mesh`; if there is
    none, all stay as they are.

    Raises:
        TypeError: as `placed_state`, or if ``eval_data`` cannot be evaluated.
        ValueError: as `placed_state`.
        RuntimeError: as `placed_state`.
    """
    mesh = _mesh_of_state(state) if mesh is None else _checked_mesh(mesh)
    if mesh is None:
        _warn_of_idle_devices(step)
        return None, state, data, eval_data
    state = placed_state(step, state, mesh)
    data, eval_data = placed_data(data, mesh), placed_examples(eval_data, mesh)
    _warn_if_whole(step, state.params, mesh)
    _warn_without_batch_axis(mesh, data)
    return mesh, state, data, eval_data


def _mesh_of_state(state: TrainState) -> Mesh | None:
    """Return the mesh that a state is on, or else the one of `jax.set_mesh`, if any."""
    found = auto_mesh_of(state)
    if isinstance(found, AbstractMesh):
        get_mesh = getattr(jax.sharding, "get_mesh", None)  # JAX 0.7 has none
        found = get_mesh and get_mesh()
    return found if isinstance(found, Mesh) and not found.empty else None


def _checked_mesh(mesh: Any) -> Mesh:
    """Return a mesh that was asked for.

    Raises:
        TypeError: as `check_devices`.
        ValueError: as `check_devices`, or if batches cannot be split over it.
    """
    check_devices(mesh)
    if BATCH_AXIS not in mesh.shape:
        raise ValueError(
            f"need a mesh with the axis {BATCH_AXIS!r}, over which batches are split, "
            f"got {dict(mesh.shape)}; make_mesh({BATCH_AXIS}=1, ...) splits none"
        )
    return mesh


def _warn_of_idle_devices(step: Step) -> None:
    if (count := processes().count) > 1:
        warn(
            f"each of {count} processes trains alone, on one of {jax.device_count()} "
            "devices: pass fit(mesh=fngrad.sharding.make_mesh())"
        )
    elif rule_of_function(step) is not None and jax.device_count() > 1:
        warn(
            f"the step has a rule, but trains on one of {jax.device_count()} devices: "
            "pass fit(mesh=fngrad.sharding.make_mesh())"
        )


def _warn_if_whole(step: Step, params: Any, mesh: Mesh) -> None:
    """Warn if a rule that should split parameters splits none of them."""
    rule = rule_of_function(step)
    if rule is None or rule is replicated or mesh.size == 1:
        return
    leaves = jax.tree.leaves(params)
    if leaves and _are_whole(leaf.sharding for leaf in leaves):
        largest = max(leaf.size for leaf in leaves)
        warn(
            "the step's rule splits no parameter, every device holds all of them: the "
            f"largest has {largest} entries; fsdp(min_size=) says from how many on a "
            "leaf is split"
        )


def warn_of_hidden_rules(
    step: Step, params: Params, rules: list[Rule], mesh: Mesh | None
) -> None:
    """Warn if a loss in a step has a rule, of which the step does not know.

    Args:
        step: of the run.
        params: on the mesh of the run, if there is one.
        rules: those of the losses that were traced in the step.
        mesh: of the run.
    """
    if mesh is None or mesh.size == 1 or rule_of_function(step) is not None:
        return
    if not _are_whole(leaf.sharding for leaf in jax.tree.leaves(params)):
        return
    for rule in rules:
        if not _are_whole(jax.tree.leaves(shardings(params, mesh, rule))):
            warn(
                f"the loss has the rule {rule!r}, but a function around it hides it "
                "from the step: every device holds all of the state; pass "
                "make_step(rule=rule), or keep the rule by functools.wraps(loss_fn)"
            )
            return


def _are_whole(where: Iterable[Any]) -> bool:
    """Return whether shardings split nothing."""
    return all(sharding.is_fully_replicated for sharding in where)


def _warn_without_batch_axis(mesh: Mesh, data: Any) -> None:
    """Warn if nothing splits the batch: no axis of the state's mesh, nor the user."""
    if BATCH_AXIS in mesh.shape or mesh.size == 1:
        return
    # An iterator is not a tree: JAX deprecates one as a leaf.
    leaves = jax.tree.leaves(data) if isinstance(data, Dataset | Sequence) else []
    if not any(is_on_a_mesh(x) and not x.sharding.is_fully_replicated for x in leaves):
        warn(
            f"the mesh of the state, {dict(mesh.shape)}, has no axis {BATCH_AXIS!r}: "
            f"each of its {mesh.size} devices computes the whole batch; "
            "fngrad.sharding.make_mesh() makes one whose devices divide it"
        )


def placed_state(step: Step, state: TrainState, mesh: Mesh) -> TrainState:
    """Return the first state of a run on a mesh, placed by the step's rule.

    What is split over the mesh already stays so. A rule splits leaves that are whole on
    every device, as `jax.set_mesh` makes them, like those of one device. Where the step
    has no rule, leaves of one device follow the parameters.

    Args:
        step: from `fngrad.make_step` or `fngrad.steps`, which keep their rule, also
            inside of `functools.partial` and `functools.wraps`; or any other.
        state: on one device, or on the mesh.
        mesh: with Auto axes.

    Raises:
        TypeError: if the mesh is something else, or as `check_state`.
        ValueError: if the mesh has Explicit axes, a spec does not fit a parameter, or
            the state is on another mesh or split by another rule.
        RuntimeError: as `check_state`.
    """
    check_state(state)
    rule = rule_of_function(step)
    found = {
        path: leaf.sharding
        for path, leaf in tree.leaf_paths(state).items()
        if is_on_a_mesh(leaf)
    }
    if not found:
        return shard_state(state, mesh, rule or replicated)
    for path, sharding in found.items():
        if sharding.mesh != mesh:
            shapes = dict(mesh.shape), dict(sharding.mesh.shape)
            other = "one of other devices" if shapes[0] == shapes[1] else str(shapes[1])
            raise ValueError(
                f"need a state on the mesh {shapes[0]}, got {path!r} on another, "
                f"{other}: shard_state(state, mesh, rule) moves it"
            )
    if made_with(step) is not None:
        _check_placement(state, found, mesh, rule)
    where = shardings(state, mesh, rule or rule_of(state.params) or replicated)

    def place(x: Any, wanted: NamedSharding) -> jax.Array:
        if not is_on_a_mesh(x):
            return put(x, wanted)
        is_kept = rule is None or x.sharding.is_equivalent_to(wanted, x.ndim)
        return x if is_kept else put(x, wanted)

    return jax.tree.map(place, state, where)


def _check_placement(
    state: TrainState, found: dict[str, NamedSharding], mesh: Mesh, rule: Rule | None
) -> None:
    """Raise unless leaves are whole, or split as a rule splits them.

    Without a rule they may be split over any axes but that of the batch.
    """
    leaves = tree.leaf_paths(state)
    wanted = tree.leaf_paths(shardings(state, mesh, rule or replicated))
    for path, sharding in found.items():
        rank = leaves[path].ndim
        is_placed = sharding.is_equivalent_to(wanted[path], rank)
        if rule is not None and not (is_placed or sharding.is_fully_replicated):
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
    """Return the data of a run on a mesh: a dataset or a source.

    Functions and iterables stay as they are.
    """
    is_placed = isinstance(data, Dataset | Source)
    return placed_examples(data, mesh) if is_placed else data


def placed_examples(data: Any, mesh: Mesh) -> Any:
    """Return arrays, a dataset or a source on a mesh.

    Arrays are whole on every device, which takes its part of each batch from them;
    those on this mesh already stay where they are. A source puts its part of a batch
    on each device.

    Raises:
        TypeError: as `check_examples`.
    """
    check_examples(data)
    if isinstance(data, Source):
        return data.on(mesh)
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path: Path, x: Any) -> Any:
        if is_on(mesh, x) or not hasattr(x, "dtype"):
            return x
        return put(x if tree.is_key(x) else array_inputs.array(path, x), whole)

    return tree.map_with_path(place, data)
