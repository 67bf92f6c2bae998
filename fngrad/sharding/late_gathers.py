"""Programs that gather their parameters where they use them: a loop's inside of it.

A traced program is evaluated again with parameters that are still *split*. A parameter
*reaches a loop* if a scan cuts it into slices, also behind calls, checkpoints and
operations that keep its shape. It stays split up to there, and the loop gathers slice
by slice. All other parameters are gathered before the program begins. The values are
those of the program, whatever is gathered where.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

import fngrad.programs.equations as equations
import fngrad.programs.jaxprs as jaxprs
from fngrad.programs.caller_warnings import warn
from fngrad.programs.jaxprs import Operation, Program
from fngrad.sharding.meshes import AnyMesh
from fngrad.types import Path

_PASSED = {"jit", "pjit", "closed_call"}  # calls that are evaluated in place
_CHECKPOINTS = {"checkpoint", "remat", "remat2", "RematTraced"}
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
    """A parameter, or what has its shape, that is not gathered yet."""

    value: jax.Array
    path: Path  # of the parameter
    spec: PartitionSpec
    used: PartitionSpec  # how it is split in use
    mesh: AnyMesh
    place: Place
    early: dict[Path, str]  # stacks used at once, and by which operation
    is_slice: bool = False  # of a stack, in the loop over it

    @functools.cached_property
    def whole(self) -> jax.Array:
        """The array as it is used; it is gathered once."""
        # Split first, or XLA gathers before a cast to a narrower dtype.
        return self.place(self.placed, self.used, self.mesh)

    @functools.cached_property
    def placed(self) -> jax.Array:
        """The array split by the spec."""
        return self.place(self.value, self.spec, self.mesh)

    def now(self, value: jax.Array) -> "Split":
        """Return another array of its shape, split alike."""
        return dataclasses.replace(self, value=value)

    def slice(self, value: jax.Array) -> "Split":
        """Return one slice along the first axis."""
        spec, used = (PartitionSpec(*s[1:]) for s in (self.spec, self.used))
        return dataclasses.replace(
            self, value=value, spec=spec, used=used, is_slice=True
        )

    @property
    def can_be_cut(self) -> bool:
        """Whether each device has a part of every slice along the first axis."""
        return not any(self.spec[:1])

    @property
    def can_wait(self) -> bool:
        """Whether it is gathered later, by a loop over it or a checkpoint in one."""
        return self.is_slice or self.can_be_cut

    def whole_in(self, operation: str) -> jax.Array:
        """Return the array as it is used; report an operation on all its slices."""
        if not self.is_slice and self.spec != self.used:
            self.early.setdefault(self.path, operation)
        return self.whole


def warn_of_early(early: dict[Path, str], mesh: AnyMesh) -> None:
    """Warn of stacks that a loss gathers at once, though it loops over them."""
    if not early or mesh.size == 1:
        return
    (path, operation), *others = early.items()
    more = f" and {len(others)} more leaves" if others else ""
    warn(
        f"the loss uses all layers of {path!r}{more} at once, in {operation!r}, beside "
        "the loop over them: every device gathers these stacks whole; leave penalties "
        "to the optimizer, and apply inside of the layer what does not keep the shape "
        "of the stack"
    )


def evaluated(
    program: Program,
    given: Sequence[Any],
    *,
    in_loop: bool = False,
    waiting: Sequence[Any] = (),
) -> list[Any]:
    """Return the results of a program of arrays and of split parameters.

    Args:
        program: traced with the shapes of the parameters.
        given: for each input an array or a `Split`.
        in_loop: whether parameters wait for the checkpoints of the program, too.
        waiting: results that reach a loop outside of the program, and may stay split.
    """
    late = _late(program.closed, in_loop, waiting)
    values: dict[Any, Any] = dict(program.constants)
    for variable, value in zip(program.inputs, given, strict=True):
        if isinstance(value, Split) and not (variable in late and value.can_wait):
            value = value.whole
        values[variable] = value
    for operation in jaxprs.operations(program):
        read = [jaxprs.read(values, v) for v in operation.equation.invars]
        results = _results(operation, read, late, in_loop)
        values |= zip(operation.equation.outvars, results, strict=True)
        for variable in operation.last_uses:
            values.pop(variable, None)
    results = ((v, jaxprs.read(values, v)) for v in program.outputs)
    return [x if v in waiting else _whole(x, "return") for v, x in results]


def _late(jaxpr: Any, in_loop: bool, waiting: Sequence[Any] = ()) -> set[Any]:
    """Return the variables that reach a loop, or in a loop also a checkpoint.

    A checkpoint in a loop gathers by itself, so that only what is split is kept for
    the backward pass.
    """
    late = set(waiting)
    for equation in reversed(jaxpr.eqns):
        late.update(filter(equations.is_variable, _reaching(equation, late, in_loop)))
    return late


def _reaching(equation: Any, late: set[Any], in_loop: bool) -> Iterator[Any]:
    """Yield what of an equation's operands reaches a loop, from what of its results."""
    name, read = equations.name_of(equation), equation.invars
    inner = equations.program_called(equation)
    if name == _LOOP:
        body, shared = equation.params["jaxpr"], _shared(equation)
        reaching = _late(body, in_loop=False)
        yield from read[sum(equations.scan_counts(equation)) :]
        pairs = zip(read[:shared], body.invars[:shared], strict=True)
        yield from (outer for outer, own in pairs if own in reaching)
    elif name in _CHECKPOINTS and in_loop:
        yield from read
    elif inner is not None:
        reaching = _late(inner, in_loop, _waiting(equation, late))
        pairs = zip(read, inner.invars, strict=True)
        yield from (outer for outer, own in pairs if own in reaching)
    elif not late.isdisjoint(equation.outvars):
        yield from read if name in _ENTRYWISE else _stacked(equation)


def _waiting(equation: Any, late: set[Any]) -> list[Any]:
    """Return the results of a call's program that reach a loop outside of it."""
    made = equations.program_called(equation).outvars
    pairs = zip(equation.outvars, made, strict=True)
    return [own for outer, own in pairs if outer in late and equations.is_variable(own)]


def _shared(equation: Any) -> int:
    return equations.scan_counts(equation)[0]


def _stacked(equation: Any) -> list[Any]:
    """Return the operand of an equation that reads one, if both have as many layers."""
    arrays = [v for v in equation.invars if getattr(v.aval, "shape", ())]
    shapes = [v.aval.shape for v in [*arrays, *equation.outvars]]
    is_alike = len(arrays) == 1 and len({shape[0] for shape in shapes if shape}) == 1
    return arrays if is_alike and all(shapes) else []


def _results(
    operation: Operation, read: list[Any], late: set[Any], in_loop: bool
) -> list[Any]:
    equation = operation.equation
    name, found = equations.name_of(equation), [x for x in read if isinstance(x, Split)]
    if not found:
        return operation.run(read)
    if name == _LOOP:
        return _looped(equation, read)
    inner = equations.program_called(equation)
    if name in _PASSED:
        waiting = _waiting(equation, late)
        program = jaxprs.called(inner)
        return evaluated(program, read, in_loop=in_loop, waiting=waiting)
    is_differentiated = equations.parameters_of(equation).get("differentiated", False)
    if name in _CHECKPOINTS and not is_differentiated:
        return _checkpointed(equation, read, in_loop)
    if name in _ENTRYWISE and not late.isdisjoint(equation.outvars):
        made = operation.run([_value(x) for x in read])
        return [_like(found, x) for x in made]
    return operation.run([_whole(x, name) for x in read])


def _like(found: list[Split], made: jax.Array) -> Any:
    """Return a result split as the operand of its shape, if there is one."""
    owner = next((x for x in found if x.value.shape == made.shape), None)
    return made if owner is None else owner.now(made)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Split) else x


def _whole(x: Any, operation: str) -> Any:
    return x.whole_in(operation) if isinstance(x, Split) else x


def _checkpointed(equation: Any, read: list[Any], in_loop: bool) -> list[jax.Array]:
    """Return the results of a checkpoint, which gathers whenever it computes."""
    program = jaxprs.called(equations.program_called(equation))
    known = equations.parameters_of(equation)

    def again(*values: Any) -> list[jax.Array]:
        pairs = zip(read, values, strict=True)
        given = [x.now(v) if isinstance(x, Split) else v for x, v in pairs]
        return evaluated(program, given, in_loop=in_loop)

    options = {key: known[key] for key in ("policy", "prevent_cse") if key in known}
    return jax.checkpoint(again, **options)(*map(_value, read))


def _looped(equation: Any, read: list[Any]) -> list[jax.Array]:
    """Return the results of a loop whose steps gather their slices."""
    program = jaxprs.called(equation.params["jaxpr"])
    shared, carried = equations.scan_counts(equation)
    reaching = _late(program.closed, in_loop=False)
    pairs = zip(read[:shared], program.inputs[:shared], strict=True)
    constants = [
        x.whole if isinstance(x, Split) and own not in reaching else x
        for x, own in pairs
    ]
    first = [_whole(x, _LOOP) for x in read[shared : shared + carried]]
    stacks = [
        x.whole if isinstance(x, Split) and not x.can_be_cut else x
        for x in read[shared + carried :]
    ]

    def step(carry: Any, slices: Any) -> tuple[Any, Any]:
        pairs = zip(stacks, slices, strict=True)
        own = [x.slice(v) if isinstance(x, Split) else v for x, v in pairs]
        made = evaluated(program, [*constants, *carry, *own], in_loop=True)
        return made[:carried], made[carried:]

    names = ("length", "reverse", "unroll", "_split_transpose")
    options = {key: equation.params[key] for key in names if key in equation.params}
    placed = [x.placed if isinstance(x, Split) else x for x in stacks]
    carry, results = jax.lax.scan(step, first, placed, **options)
    return [*carry, *results]
