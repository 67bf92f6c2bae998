"""Constraints inside a program: they place arrays on a mesh, and vanish without one.

They are JAX's own and linear, so that they pass forward and reverse mode, `vmap` and
`scan`. The gradient of an array that is split and then gathered is summed over the
devices, and each device keeps its part; on a GPU or TPU, XLA makes of both one
reduce-scatter.
"""

import contextlib
import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import jax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fngrad.programs.jaxprs as jaxprs
import fngrad.tree as tree
from fngrad.programs.signatures import (
    OF_A_LOSS,
    OF_A_LOSS_OR_METRIC,
    operands,
    parameters,
)
from fngrad.programs.step_wrappers import wraps_step
from fngrad.sharding.late_gathers import (
    Split,
    array_of,
    evaluated,
    waits,
    warn_of_early,
)
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
_VALUES_NEEDED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
_Step = TypeVar("_Step", bound=Callable[[Any, Any], tuple[Any, Any]])


_RULES: ContextVar[list[Rule] | None] = ContextVar("rules", default=None)
_OF_EXAMPLES: ContextVar[bool] = ContextVar("of_examples", default=False)


@contextlib.contextmanager
def gradients_of_examples() -> Iterator[None]:
    """Let the losses traced in it leave their gradients where they are computed.

    Under ``vmap`` over examples each device has those of its examples, whole. Split as
    the parameters are, they would all be exchanged before they are summed.
    """
    token = _OF_EXAMPLES.set(True)
    try:
        yield
    finally:
        _OF_EXAMPLES.reset(token)


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
    """Return an array placed so; unchanged without a mesh that has devices."""
    if mesh is None:
        return x
    if not isinstance(x, Tracer):
        has_devices = isinstance(mesh, Mesh)  # in an eager derivative it has none
        return jax.device_put(x, NamedSharding(mesh, spec)) if has_devices else x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _constrained_value(
    x: jax.Array, spec: PartitionSpec, mesh: AnyMesh | None
) -> jax.Array:
    """Return `constrained`, whose derivative is not constrained."""
    return constrained(x, spec, mesh)


@_constrained_value.defjvp
def _constrained_value_jvp(
    spec: PartitionSpec, mesh: AnyMesh | None, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    return _constrained_value(*primals, spec, mesh), tangents[0]


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
    mesh; their gradients come back split. Stacks that a loop cuts into layers, as that
    of `fngrad.layers.repeat` does, are gathered one layer at a time, and again in the
    backward pass; so they are where the loss jits or checkpoints the model, or casts
    and scales all parameters first. A stack is gathered whole if the loss reshapes,
    slices or joins it before the loop, loops inside of `jax.lax.cond` or
    `jax.lax.while_loop`, or if the rule splits it along its layers. What uses a stack
    beside the loop over it gathers it whole, too; a warning says so. A batch whose size
    the devices do not divide is computed whole on each. On one device, or without a
    mesh, nothing happens. A loss is traced to look for such loops; one without any is
    called again.

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
        early: dict[Path, str] = {}
        part = functools.partial(_part, rule, mesh, early)
        parts = tree.map_with_path(part, given[params])

        def of_params(whole: Params) -> Any:
            own = inspect.BoundArguments(signature, given | {params: whole})
            return loss_fn(*own.args, **own.kwargs)

        result = _gathered(of_params, parts)
        warn_of_early(early, mesh)
        return result

    on_mesh.__signature__ = signature  # type: ignore[attr-defined]
    return with_rule(on_mesh, rule)  # for the steps of this loss


def _part(
    rule: Rule, mesh: AnyMesh, early: dict[Path, str], path: Path, x: jax.Array
) -> Split:
    spec = checked_spec(rule, path, x, mesh)
    place = _constrained_value if _OF_EXAMPLES.get() else constrained
    return Split(x, path, spec, _used(spec), mesh, place, early)


def _used(spec: PartitionSpec) -> PartitionSpec:
    """Return how a parameter is split in use: not over the devices of the batch."""
    kept = (tuple(n for n in axes_of(e) if n != BATCH_AXIS) for e in spec)
    return PartitionSpec(*(names or None for names in kept))


def _gathered(fn: Callable[[Params], Any], parts: Any) -> Any:
    """Return a function of parameters that are gathered where they are used."""
    leaves, structure = jax.tree.flatten(parts)
    traced = [part for part in leaves if isinstance(part.value, Tracer)]
    known = [None if isinstance(x.value, Tracer) else x.whole for x in leaves]
    others: list[Any] = []  # results that are not arrays of JAX

    def whole(arrays: list[jax.Array]) -> Params:
        rest = iter(arrays)
        return structure.unflatten([next(rest) if x is None else x for x in known])

    def arrays(values: list[jax.Array]) -> Any:
        result = fn(whole(values))
        is_array = jax.tree.map(lambda x: isinstance(x, jax.Array), result)
        others.append(tree.keep(jax.tree.map(operator.not_, is_array), result))
        return tree.keep(is_array, result)

    program, late = None, [False] * len(traced)
    config: Any = jax.config  # type checkers do not know its settings
    if any(part.is_gathered for part in traced) and not config.jax_disable_jit:
        with contextlib.suppress(*_VALUES_NEEDED):  # which eager derivatives have
            program, form = jaxprs.trace(arrays, [part.value for part in traced])
            late = waits(program, traced)
    pairs = zip(traced, late, strict=True)
    given = [part if is_late else part.whole for part, is_late in pairs]
    if program is None or not any(late):
        return fn(whole(given))
    results = list(map(array_of, evaluated(program, given)))
    return tree.merge(form.unflatten(results), others[-1])
