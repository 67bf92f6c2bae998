"""A step as a program of another platform, made here, which another process compiles.

A step is a function, often a closure, and cannot be sent to a process; its program can.
`jax.export` lowers it for a platform that is not here, on a mesh without devices, and
keeps what matters to the compiler: shardings and constraints by the names of the mesh's
axes, donation, and the names of operations. The exported program takes and returns
flat tuples, so that no type of the user's has to be imported to read it. It is pickled:
JAX's own form of it needs another library, and it is read at once by the same JAX.
"""

import dataclasses
import io
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
from jax import export
from jax.sharding import AbstractMesh, NamedSharding

import fngrad.tree as tree
from fngrad.programs.equations import outside_effects
from fngrad.programs.jaxprs import Program
from fngrad.sharding.meshes import abstract_mesh
from fngrad.sharding.placement import batch_spec, check_batch, shardings
from fngrad.sharding.rules import Rule, replicated, rule_of_function
from fngrad.training.run_checks import call_step, check_order
from fngrad.training.state import TrainState, check_train_state
from fngrad.training.step import Step
from fngrad.types import Batch
from fngrad.types import Path as LeafPath


class PlacedStep(NamedTuple):
    """A step, traced on a mesh without devices."""

    program: Any  # jitted: (leaves of the state, of the batch) -> (same, metrics)
    traced: Any
    state: dict[LeafPath, Any]  # abstract, with shardings
    batch: dict[LeafPath, Any]
    mesh: AbstractMesh
    rule: Rule | None  # that the step was made with

    @property
    def jaxpr(self) -> Program:
        """What the step computes, on all devices together."""
        return Program(self.traced.jaxpr)

    def exported(self, platform: str) -> Any:
        """Return the program of a platform.

        Raises:
            Exception: whatever JAX raises if the step has no such program.
        """
        leaves = tuple(self.state.values()), tuple(self.batch.values())
        return export.export(self.program, platforms=[platform])(*leaves)


def placed_step(
    step: Step, state: TrainState, batch: Batch, axes: dict[str, int]
) -> PlacedStep:
    """Trace a step on a mesh, with state and batch where `fngrad.fit` places them.

    Args:
        step: its rule says where the state is.
        state: arrays or ShapeDtypeStructs.
        batch: the same; it is split over the axis "data".
        axes: sizes of the mesh by name.

    Raises:
        TypeError: if it is not a step, or the state not a TrainState.
        ValueError: if the devices do not divide the batch, or the rule does not fit.
    """
    mesh = abstract_mesh(**axes)
    check_order(step, batch)
    check_train_state(state)
    check_batch(batch, mesh)
    state, batch, rule = abstract(state), abstract(batch), rule_of_function(step)
    placed = jax.tree.map(_placed, state, shardings(state, mesh, rule or replicated))
    split = jax.tree.map(
        lambda x: _placed(x, NamedSharding(mesh, batch_spec(x, mesh))), batch
    )
    program = jax.jit(_flat(step, placed, split), donate_argnums=0)
    states, batches = (
        {path: _raw(x) for path, x in tree.leaf_paths(a).items()}
        for a in (placed, split)
    )
    leaves = tuple(states.values()), tuple(batches.values())
    made: list[Any] = []

    def trace(_: Any, __: Any) -> Any:
        made.append(program.trace(*leaves))
        return made[0].out_info

    call_step(step, placed, split, trace)
    return PlacedStep(program, made[0], states, batches, mesh, rule)


def _flat(step: Step, state: TrainState, batch: Batch) -> Callable[..., Any]:
    """Return a step from and to tuples of leaves, of keys their data.

    Typed keys of an exported program have shardings of a wrong rank in JAX 0.7.
    """
    structures = jax.tree.structure(state), jax.tree.structure(batch)
    kinds = [[*map(_key_kind, jax.tree.leaves(a))] for a in (state, batch)]

    def flat(*given: Any) -> Any:
        arguments = (
            structure.unflatten(map(_typed, leaves, kind))
            for structure, leaves, kind in zip(structures, given, kinds, strict=True)
        )
        made = step(*arguments)
        if not isinstance(made, tuple) or len(made) != 2:
            return made  # `call_step` explains it
        return tuple(tuple(map(_data, jax.tree.leaves(part))) for part in made)

    return flat


def _key_kind(x: Any) -> Any:
    """Return the generator of an abstract key, and None of any other array."""
    if not tree.is_key(x):
        return None
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), x)
    return found[0]


def _typed(x: jax.Array, kind: Any) -> jax.Array:
    return x if kind is None else jax.random.wrap_key_data(x, impl=kind)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if tree.is_key(x) else x


def _raw(x: Any) -> Any:
    """Return the data of an abstract key, and any other abstract array as it is."""
    if not tree.is_key(x):
        return x
    return _placed(jax.eval_shape(jax.random.key_data, x), x.sharding)


def abstract(a: Any) -> Any:
    """Return shapes and dtypes alone: an array may be on devices of this machine."""
    found = jax.eval_shape(lambda a: a, a)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found)


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def write_request(path: Path, placed: PlacedStep, topology: dict[str, Any]) -> None:
    """Write what the process that compiles needs; see `compile_worker`.

    Args:
        path: of the file.
        placed: the step.
        topology: arguments of JAX's get_topology_desc.

    Raises:
        Exception: whatever JAX raises if the step has no program for a TPU.
    """
    exported, config = placed.exported("tpu"), cast(Any, jax.config)
    request = {
        # The function that makes its gradient cannot be pickled.
        "step": dataclasses.replace(exported, _get_vjp=None),
        "topology": topology,
        "axes": dict(placed.mesh.shape),
        "state": [_described(x) for x in placed.state.values()],
        "batch": [_described(x) for x in placed.batch.values()],
        "x64": config.jax_enable_x64,
    }
    path.write_bytes(pickled(request))


def pickled(a: Any) -> bytes:
    """Return what `pickle.loads` reads, though JAX 0.7 cannot pickle its shardings."""
    found = io.BytesIO()
    _Pickler(found).dump(a)
    return found.getvalue()


class _Pickler(pickle.Pickler):
    """One for shardings of the compiler, too."""

    def reducer_override(self, obj: Any) -> Any:
        """Say how an object is made again; leave all others to pickle."""
        if type(obj).__name__ == "HloSharding":
            made = operator.methodcaller("from_proto", obj.to_proto())
            return made, (type(obj),)
        return NotImplemented


def why_not_exported(placed: PlacedStep, error: Exception) -> str:
    """Return why a step has no program of another platform, in words."""
    text = f"{type(error).__name__}: {error}"
    if outside_effects(placed.traced.jaxpr):
        return (
            "the step calls Python while it runs (jax.debug.print, a callback), which "
            f"no program for another platform can: leave it out\n{text}"
        )
    return text


def _described(x: Any) -> tuple[Any, Any, Any]:
    return x.shape, x.dtype, x.sharding.spec
