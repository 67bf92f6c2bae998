"""Gather split parameters where a program uses them: in a loop, one slice at a time.

A traced program is evaluated again with parameters that are still *split*. A parameter
*reaches a loop* if a scan cuts it into slices, even through calls, checkpoints and
operations that keep its shape. It stays split up to there, and is gathered slice by
slice, once more in the backward pass. All other parameters are gathered before the
program begins. The values are those of the program, whatever is gathered where.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

import fngrad.programs.equations as equations
import fngrad.programs.jaxprs as jaxprs
from fngrad.programs.caller_warnings import warn
from fngrad.programs.jaxprs import Operation, Program
from fngrad.sharding.meshes import AnyMesh
from fngrad.types import Path

_LOOP = "scan"
_ENTRYWISE = {
    *("convert_element_type", "reduce_precision", "stop_gradient", *equations.COPIES),
    *("mul", "add", "sub", "div", "neg", "add_any", "max", "min", "clamp", "select_n"),
    *("abs", "sign", "round", "floor", "pow", "integer_pow", "square", "sqrt", "rsqrt"),
    *("exp", "log", "tanh", "logistic", "erf", "sin", "cos"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "is_finite"),
}

# An array, how it is split and over which mesh -> the same, placed so.
Place = Callable[[jax.Array, PartitionSpec, AnyMesh], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A parameter, or an array of its shape, that is not gathered yet."""

    value: jax.Array
    path: Path  # of the parameter
    spec: PartitionSpec
    used: PartitionSpec  # how it is split in use
    mesh: AnyMesh
    place: Place
    early: dict[Path, str]  # stacks gathered all at once, and for which operation
    is_slice: bool = False  # of a stack, in the loop over it

    @functools.cached_property
    def whole(self) -> jax.Array:
        """The array as it is used; it is gathered once in each traced function."""
        # Split first, or XLA gathers before a cast to a narrower dtype.
        placed = self.placed
        return self.place(placed, self.used, self.mesh) if self.is_gathered else placed

    @functools.cached_property
    def placed(self) -> jax.Array:
        """The array split by the spec."""
        return self.place(self.value, self.spec, self.mesh)

    def with_value(self, value: jax.Array) -> "Split":
        """Return another array of its shape, split alike."""
        return dataclasses.replace(self, value=value)

    def slice(self, value: jax.Array) -> "Split":
        """Return one slice along the first axis."""
        spec, used = (PartitionSpec(*s[1:]) for s in (self.spec, self.used))
        return dataclasses.replace(
            self, value=value, spec=spec, used=used, is_slice=True
        )

    def transposed(self, value: jax.Array, axes: Sequence[int]) -> "Split":
        """Return the array with its axes in another order."""
        rank = value.ndim
        pairs = ((*s, *[None] * (rank - len(s))) for s in (self.spec, self.used))
        spec, used = (PartitionSpec(*(s[axis] for axis in axes)) for s in pairs)
        return dataclasses.replace(self, value=value, spec=spec, used=used)

    @property
    def is_gathered(self) -> bool:
        """Whether devices hold more of it in use."""
        return self.spec != self.used

    @property
    def can_be_cut(self) -> bool:
        """Whether each device has a part of every slice along the first axis."""
        return not any(self.spec[:1])

    @property
    def can_wait(self) -> bool:
        """Whether it is gathered later, by a loop over it or a checkpoint in one."""
        return self.is_slice or self.can_be_cut

    def whole_for(self, operation: str) -> jax.Array:
        """Return the array as it is used; report an operation on all its slices."""
        if not self.is_slice and self.is_gathered:
            self.early.setdefault(self.path, operation)
        return self.whole


def warn_of_early(early: dict[Path, str], mesh: AnyMesh) -> None:
    """Warn of stacks that a loss gathers at once, though it loops over them."""
    if not early or mesh.size == 1:
        return
    (path, operation), *others = early.items()
    more = f" (and {len(others)} more)" if others else ""
    warn(
        f"every device gathers all layers of {path!r}{more} at once, for "
        f"{operation!r}, which uses them outside of the loop over them. Leave "
        "penalties to the optimizer, and let each layer change its own parameters"
    )


def waits(program: Program, given: Sequence[Split]) -> list[bool]:
    """Return for each parameter of a program whether a loop gathers it later."""
    late = _late(program.closed, checkpoints_gather=False)
    pairs = zip(program.inputs, given, strict=True)
    return [own in late and x.is_gathered and x.can_wait for own, x in pairs]


def evaluated(
    program: Program,
    given: Sequence[Any],
    *,
    checkpoints_gather: bool = False,
    waiting: Sequence[Any] = (),
) -> list[Any]:
    """Return the results of a program, arrays or split parameters.

    Args:
        program: traced with the shapes of the parameters.
        given: for each input an array or a `Split`, which is gathered where an equation
            reads it.
        checkpoints_gather: whether parameters wait for the checkpoints of the program,
            too, as those of a loop's body do.
        waiting: the program's results that reach a loop outside of it.
    """
    late = _late(program.closed, checkpoints_gather, waiting)
    values = program.constants | dict(zip(program.inputs, given, strict=True))
    for operation in jaxprs.operations(program):
        read = [jaxprs.read(values, v) for v in operation.equation.invars]
        results = _results(operation, read, late, checkpoints_gather)
        values |= zip(operation.equation.outvars, results, strict=True)
        for variable in operation.last_uses:
            values.pop(variable, None)
    return [jaxprs.output(values, v) for v in program.outputs]


def _late(
    jaxpr: Any, checkpoints_gather: bool, waiting: Sequence[Any] = ()
) -> set[Any]:
    """Return the variables that reach a loop, or if it gathers also a checkpoint.

    A checkpoint in a loop gathers by itself, so that only what is split is kept for
    the backward pass.
    """
    late = set(waiting)
    for equation in reversed(jaxpr.eqns):
        reaching = _reaching(equation, late, checkpoints_gather)
        late.update(filter(equations.is_variable, reaching))
    return late


def _reaching(equation: Any, late: set[Any], checkpoints_gather: bool) -> Iterator[Any]:
    """Yield what of an equation's operands reaches a loop, from what of its results."""
    name, read = equations.name_of(equation), equation.invars
    inner = equations.program_called(equation)
    if name == _LOOP:
        body, shared = equation.params["jaxpr"], equations.scan_counts(equation)[0]
        reaching = _late(body, checkpoints_gather=False)
        yield from read[sum(equations.scan_counts(equation)) :]
        pairs = zip(read[:shared], body.invars[:shared], strict=True)
        yield from (outer for outer, own in pairs if own in reaching)
    elif name in equations.CHECKPOINTS and checkpoints_gather:
        yield from read
    elif inner is not None:
        reaching = _late(inner, checkpoints_gather, _waiting(equation, late))
        pairs = zip(read, inner.invars, strict=True)
        yield from (outer for outer, own in pairs if own in reaching)
    elif not late.isdisjoint(equation.outvars):
        yield from read if name in _ENTRYWISE else _stacked(equation)


def _waiting(equation: Any, late: set[Any]) -> list[Any]:
    """Return the results of a call's program that reach a loop outside of it."""
    made = equations.program_called(equation).outvars
    pairs = zip(equation.outvars, made, strict=True)
    return [own for outer, own in pairs if outer in late and equations.is_variable(own)]


def _stacked(equation: Any) -> list[Any]:
    """Return the operand of an equation that reads one, if both have as many layers."""
    arrays = [v for v in equation.invars if getattr(v.aval, "shape", ())]
    shapes = [v.aval.shape for v in [*arrays, *equation.outvars]]
    is_alike = len(arrays) == 1 and len({shape[0] for shape in shapes if shape}) == 1
    return arrays if is_alike and all(shapes) else []


def _results(
    operation: Operation, read: list[Any], late: set[Any], checkpoints_gather: bool
) -> list[Any]:
    equation = operation.equation
    name, found = equations.name_of(equation), [x for x in read if isinstance(x, Split)]
    if not found:
        return operation.run(read)
    is_slice = any(x.is_slice and x.is_gathered for x in found)
    is_scaled = is_slice and all(isinstance(x, Split) or not jnp.ndim(x) for x in read)
    if name in _ENTRYWISE and (is_scaled or not late.isdisjoint(equation.outvars)):
        made = operation.run(list(map(_value, read)))
        return _like(read, made)
    if is_slice and name == "transpose":
        (made,), (part,) = operation.run([read[0].value]), read
        return [part.transposed(made, equation.params["permutation"])]
    # What is evaluated again keeps the names of its layers.
    with jax.named_scope(equations.scope_of(equation)):
        if name == _LOOP:
            return _looped(equation, read)
        if name in equations.JITS:
            program = jaxprs.called(equations.program_called(equation))
            waiting = _waiting(equation, late)
            options = {"checkpoints_gather": checkpoints_gather, "waiting": waiting}
            return evaluated(program, read, **options)
        known = equations.parameters_of(equation)
        if name in equations.CHECKPOINTS and not known.get("differentiated"):
            return _checkpointed(equation, read, checkpoints_gather)
    if is_slice and not equation.effects:
        return _gathered_again(operation, read)
    return operation.run([_whole_for(name, x) for x in read])


def _like(read: list[Any], made: list[jax.Array]) -> list[Any]:
    """Return results split as the operands in their places, or else of their shape."""
    if len(made) == len(read):
        return _with_values(read, made)
    found = (x for x in read if isinstance(x, Split))
    owner = next((x for x in found if x.value.shape == made[0].shape), None)
    return made if owner is None else [owner.with_value(made[0])]


def _gathered_again(operation: Operation, read: list[Any]) -> list[jax.Array]:
    """Return the results of an equation, which keeps none of the slices it gathers.

    The backward pass gathers them again.
    """

    def again(*values: Any) -> list[jax.Array]:
        given = _with_values(read, values)
        return operation.run([x.whole if isinstance(x, Split) else x for x in given])

    everything = jax.checkpoint_policies.everything_saveable
    policy = functools.partial(_all_but_gathers, everything)
    return jax.checkpoint(again, policy=policy, prevent_cse=False)(*map(_value, read))


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Split) else x


def _whole_for(operation: str, x: Any) -> Any:
    return x.whole_for(operation) if isinstance(x, Split) else x


def array_of(x: Any) -> jax.Array:
    """Return an array as it is, and a parameter as it is split."""
    return x.placed if isinstance(x, Split) else x


def _with_values(given: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Return arrays in the places of others, split alike; none is gathered yet."""
    pairs = zip(given, values, strict=True)
    return [x.with_value(v) if isinstance(x, Split) else v for x, v in pairs]


def _checkpointed(
    equation: Any, read: list[Any], checkpoints_gather: bool
) -> list[jax.Array]:
    """Return the results of a checkpoint, which gathers whenever it computes."""
    program = jaxprs.called(equations.program_called(equation))
    known = equations.parameters_of(equation)

    def again(*values: Any) -> list[jax.Array]:
        given = _with_values(read, values)
        results = evaluated(program, given, checkpoints_gather=checkpoints_gather)
        return list(map(array_of, results))

    policy = known.get("policy")
    return jax.checkpoint(
        again,
        policy=policy and functools.partial(_all_but_gathers, policy),
        prevent_cse=known.get("prevent_cse", True),
    )(*map(_value, read))


def _all_but_gathers(
    policy: Callable[..., Any], primitive: Any, *args: Any, **params: Any
) -> Any:
    """Return what a checkpoint's policy saves, but no result of a constraint."""
    is_gather = primitive.name == "sharding_constraint"
    return not is_gather and policy(primitive, *args, **params)


def _looped(equation: Any, read: list[Any]) -> list[jax.Array]:
    """Return the results of a loop whose steps gather their slices."""
    known = equation.params
    program = jaxprs.called(known["jaxpr"])
    shared, carried = equations.scan_counts(equation)
    constants, first = read[:shared], read[shared : shared + carried]
    reaching = _late(program.closed, checkpoints_gather=False)
    pairs = zip(constants, program.inputs[:shared], strict=True)
    constants = [x if own in reaching else _whole_for(_LOOP, x) for x, own in pairs]
    stacks = [
        x.whole if isinstance(x, Split) and not x.can_be_cut else x
        for x in read[shared + carried :]
    ]
    of_all = list(map(array_of, constants))

    def step(carry: Any, slices: Any) -> tuple[Any, Any]:
        pairs = zip(stacks, slices, strict=True)
        own = [x.slice(v) if isinstance(x, Split) else v for x, v in pairs]
        given = [*_with_values(constants, of_all), *carry, *own]
        results = evaluated(program, given, checkpoints_gather=True)
        made = list(map(array_of, results))
        return made[:carried], made[carried:]

    names = ("length", "reverse", "unroll", "_split_transpose")
    options = {key: known[key] for key in names if key in known}
    carry = [_whole_for(_LOOP, x) for x in first]
    carry, results = jax.lax.scan(step, carry, [*map(array_of, stacks)], **options)
    return [*carry, *results]
