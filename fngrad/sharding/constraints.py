"""Constraints inside a program: they place arrays on a mesh, and vanish without one.

They are JAX's own and linear, so that they pass forward and reverse mode, `vmap` and
`scan`. The gradient of an array that is split and then gathered is summed over the
devices, and each device keeps its part; on a GPU or TPU, XLA makes of both one
reduce-scatter.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar, cast

import jax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fngrad.tree as tree
from fngrad.programs.signatures import (
    OF_A_LOSS,
    OF_A_LOSS_OR_METRIC,
    operands,
    parameters,
)
from fngrad.programs.step_wrappers import wraps_step
from fngrad.sharding.meshes import BATCH_AXIS, AnyMesh, mesh_of
from fngrad.sharding.placement import batch_spec, shardings
from fngrad.sharding.rules import (
    Rule,
    axes_of,
    check_rule,
    checked_spec,
    rule_of_function,
    with_rule,
)
from fngrad.types import Batch, Params, Path, Tree

WHOLE = PartitionSpec()
_Step = TypeVar("_Step", bound=Callable[[Any, Any], tuple[Any, Any]])


class _Gathered(NamedTuple):
    whole: jax.Array  # kept, so that its id stays its own
    split: jax.Array
    spec: PartitionSpec
    mesh: AnyMesh


# By the id of the whole array: the parameters that the loss being traced was given.
_GATHERED: ContextVar[dict[int, _Gathered] | None] = ContextVar(
    "gathered", default=None
)

_RULES: ContextVar[list[Rule] | None] = ContextVar("rules", default=None)


@contextlib.contextmanager
def rules_in_use() -> Iterator[list[Rule]]:
    """Yield a list to which each loss that is traced on a mesh adds its rule."""
    rules: list[Rule] = []
    token = _RULES.set(rules)
    try:
        yield rules
    finally:
        _RULES.reset(token)


def constrained(x: jax.Array, spec: PartitionSpec, mesh: AnyMesh | None) -> jax.Array:
    """Return an array placed so; as it is without a mesh."""
    if mesh is None:
        return x
    if isinstance(mesh, Mesh) and not isinstance(x, Tracer):
        return jax.device_put(x, NamedSharding(mesh, spec))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def undivided(x: jax.Array, mesh: AnyMesh | None) -> jax.Array:
    """Return an array not split along its first axis; XLA chooses for the others.

    XLA would exchange slice by slice what is joined or cut along a split axis.
    """
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return constrained(x, PartitionSpec(None, *free), mesh)


def split(batch: Batch, mesh: AnyMesh | None) -> Batch:
    """Return a batch split over the devices where its size allows, else whole.

    On a mesh without the axis "data" it stays as it is.
    """
    if mesh is None or BATCH_AXIS not in mesh.shape:
        return batch
    return jax.tree.map(lambda x: constrained(x, batch_spec(x, mesh), mesh), batch)


def placed(state: Tree, rule: Rule | None) -> Tree:
    """Return a state placed by a rule, if it is on a mesh."""
    mesh = None if rule is None else mesh_of(state)
    if mesh is None or rule is None:
        return state
    return jax.lax.with_sharding_constraint(state, shardings(state, mesh, rule))


def placing(step: _Step, loss_fn: Callable[..., Any]) -> _Step:
    """Return a step that places its new state by the rule of a loss from `gathered`.

    The step keeps the rule, for ``fit(mesh=)``. Of another loss it is the step itself.
    """
    rule = rule_of_function(loss_fn)
    if rule is None:
        return step

    @wraps_step(step)
    def on_mesh(state: Tree, batch: Batch) -> tuple[Tree, Any]:
        new_state, metrics = step(state, batch)
        return placed(new_state, rule), metrics

    return cast(_Step, with_rule(on_mesh, rule))


def gathered(loss_fn: Callable[..., Any], rule: Rule | None) -> Callable[..., Any]:
    r"""Return a loss that gathers its parameters for use and computes on its part.

    Each device computes the whole network on its part of the batch, as in data
    parallelism, though it holds a part of each parameter only. Without it XLA splits
    the features of parameters that are split, and gathers the batch.

    Parameters that a rule splits over the axis "data" are gathered over it, in the
    dtype in which the loss is given them, and stay split over the other axes of the
    mesh; their gradients come back split. The layers of `fngrad.layers.repeat` are
    gathered one by one. A batch whose size the devices do not divide is computed whole
    on each. On one device, or without a mesh, nothing happens.

    ``make_step(rule=)`` calls it. For the steps of `fngrad.steps` call it yourself, and
    inside of `fngrad.mixed_precision`, so that what is gathered is narrow:
    ``mixed_precision(gathered(loss_fn, rule), "bfloat16")``. They find the rule on the
    loss, place the state by it, and pass it on to ``fit(mesh=)``.

    Args:
        loss_fn: takes the parameters and the batch, and by name ``key`` and
            ``model_state``.
        rule: that of the state, see `shard_state`; None changes nothing.

    Returns:
        A function with the arguments of ``loss_fn``; a loss that this rule gathers
        already is returned as it is.

    Raises:
        TypeError: if the rule is not a function, or ``loss_fn`` takes other arguments.
        ValueError: if another rule gathers the loss already; while tracing on a mesh,
            if a spec does not fit a parameter.
    """
    if rule is None:
        return loss_fn
    check_rule(rule)
    known = rule_of_function(loss_fn)
    if known is not None and known != rule:
        raise ValueError(
            f"need one rule, got a loss that {known!r} gathers and rule={rule!r}: "
            "leave out one of gathered(loss_fn, rule) and make_step(rule=)"
        )
    if known is not None:
        return loss_fn
    params, batch = operands(loss_fn, OF_A_LOSS, OF_A_LOSS_OR_METRIC)
    signature = inspect.Signature(list(parameters(loss_fn).values()))

    @functools.wraps(loss_fn, updated=())
    def on_mesh(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        mesh = mesh_of(given[params], given[batch])
        if mesh is None:
            return loss_fn(*args, **kwargs)
        if (rules := _RULES.get()) is not None:
            rules.append(rule)
        given[batch] = split(given[batch], mesh)
        with _gathering(given[params], rule, mesh) as given[params]:
            return loss_fn(*bound.args, **bound.kwargs)

    on_mesh.__signature__ = signature  # type: ignore[attr-defined]
    return with_rule(on_mesh, rule)  # for the steps of this loss


@contextlib.contextmanager
def _gathering(params: Params, rule: Rule, mesh: AnyMesh) -> Iterator[Params]:
    """Yield whole parameters; while it lasts, `layer_by_layer` finds the split ones."""
    known: dict[int, _Gathered] = {}

    def gather(path: Path, x: jax.Array) -> jax.Array:
        spec = checked_spec(rule, path, x, mesh)
        found = _gathered(x, spec, mesh)
        known[id(found.whole)] = found
        return found.whole

    token = _GATHERED.set(known)
    try:
        yield tree.map_with_path(gather, params)
    finally:
        _GATHERED.reset(token)


def _gathered(x: jax.Array, spec: PartitionSpec, mesh: AnyMesh) -> _Gathered:
    # Split first, or XLA gathers before a cast to a narrower dtype.
    divided = constrained(x, spec, mesh)
    return _Gathered(constrained(divided, _used(spec), mesh), divided, spec, mesh)


def _used(spec: PartitionSpec) -> PartitionSpec:
    """Return how a parameter is split in use: not over the devices of the batch."""
    kept = (tuple(n for n in axes_of(e) if n != BATCH_AXIS) for e in spec)
    return PartitionSpec(*(names or None for names in kept))


def layer_by_layer(stacked: Params) -> tuple[Params, Callable[[Params], Params] | None]:
    """Return stacked layers split as they are kept, and what gathers one of them.

    Args:
        stacked: parameters with a leading axis of layers.

    Returns:
        The stacks to loop over, and ``gather(layer) -> layer``; the stacks given and
        None, unless they are parameters of a loss that `gathered` gathers.
    """
    known = _GATHERED.get() or {}
    leaves, structure = jax.tree.flatten(stacked)
    found = [known.get(id(leaf)) for leaf in leaves]
    # A stack split along its layers is gathered at once: one device has each layer.
    found = [f if f is not None and not (f.spec and f.spec[0]) else None for f in found]
    if not any(found):
        return stacked, None
    stacks = [
        leaf if f is None else f.split for leaf, f in zip(leaves, found, strict=True)
    ]

    def gather(layer: Params) -> Params:
        parts = [
            x if f is None else _gathered(x, PartitionSpec(*f.spec[1:]), f.mesh).whole
            for x, f in zip(jax.tree.leaves(layer), found, strict=True)
        ]
        return structure.unflatten(parts)

    return structure.unflatten(stacks), gather
