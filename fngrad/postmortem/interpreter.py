"""A program evaluated equation by equation, to find where numbers go bad.

A number is *bad* if it is not finite. An equation with good inputs and a bad output is
an *origin*. Every bad value records the origins that it depends on, so an origin whose
output is masked away reaches no output. Infinities in the program's own literals and
constants are *intended*: they count as good, also after a broadcast or a cast; the
equation that mixes them with the step's numbers is an origin. A *repair* replaces by 1
the entries that an origin made bad, which shows their effect; entries that are bad
because an input was stay bad.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.programs.jaxprs as jaxprs
import fngrad.tree as tree
from fngrad.programs.equations import (
    CONSTRAINTS,
    is_variable,
    name_of,
    parameters_of,
    program_called,
    scan_counts,
    scope_of,
)
from fngrad.programs.jaxprs import Operation, Program
from fngrad.types import Path

# The equation's index, after the indices of the equations that contain it; in a loop
# also after that of the iteration. (INPUT, i) is argument i of the program.
Location: TypeAlias = tuple[int, ...]
INPUT = -1

_SILENT = {"debug_callback", "debug_print"}  # equations that are skipped
# Names that `fngrad.training.loss_forms` gives to values.
GRADIENT, LOSS = "gradient/", "loss"


class Value(NamedTuple):
    """An input or an output of an equation."""

    array: Any
    sources: frozenset[Location] = frozenset()  # the origins of its bad entries
    made: int = 0  # how many equations had been evaluated
    is_constant: bool = False  # whether it depends on no argument


class Origin(NamedTuple):
    """An equation or an argument where bad numbers appear first."""

    location: Location
    equations: tuple[Any, ...]  # it and those that contain it; none for an argument
    inputs: list[Any]
    outputs: list[Any]
    made: int = 0  # how many equations had been evaluated

    @property
    def scopes(self) -> str:
        """Its name stack, after those of the equations that contain it."""
        outermost_first = reversed(self.equations)
        return "/".join(map(scope_of, outermost_first))


class Interpreter:
    """One evaluation of a program.

    Args:
        program: the program to evaluate.
        repaired: the locations to repair.
        check: called before every equation; may raise to give up.
    """

    def __init__(
        self,
        program: Program,
        repaired: Iterable[Location] = (),
        check: Callable[[], None] = lambda: None,
    ):
        self.origins: dict[Location, Origin] = {}  # in the order of evaluation
        self.gradients: dict[Path, Value] = {}  # as the program names them
        self.losses: list[Value] = []  # likewise, in the order of evaluation
        self._program = program
        self._repaired = frozenset(repaired)
        self._check = check
        self._written: dict[int, Value] = {}  # of each reference, by its id
        self._count = 0

    def run(self, arrays: Sequence[Any]) -> list[Value]:
        """Return the program's outputs."""
        inputs = [self._argument(i, array) for i, array in enumerate(arrays)]
        return self._follow(self._program, inputs, (), ())

    def _argument(self, index: int, array: Any) -> Value:
        location = (INPUT, index)
        if not is_bad(array):
            return Value(array)
        if location in self._repaired:
            return Value(repair(array))
        self.origins[location] = Origin(location, (), [], [array])
        return Value(array, frozenset([location]))

    def _follow(
        self,
        program: Program,
        inputs: Sequence[Value],
        location: Location,
        around: tuple[Any, ...],
    ) -> list[Value]:
        known = {v: _constant(array) for v, array in program.constants.items()}
        known |= zip(program.inputs, inputs, strict=True)

        def read(variable: Any) -> Value:
            if is_variable(variable):
                return known[variable]
            return _constant(jaxprs.read({}, variable))

        for index, operation in enumerate(jaxprs.operations(program)):
            equation = operation.equation
            values = [read(v) for v in equation.invars]
            here = (*location, index), (equation, *around)
            outputs = self._evaluate(operation, values, *here)
            known |= zip(equation.outvars, outputs, strict=True)
            for variable in operation.last_uses:
                known.pop(variable, None)
        return [read(v) for v in program.outputs]

    def _evaluate(
        self,
        operation: Operation,
        inputs: list[Value],
        location: Location,
        equations: tuple[Any, ...],
    ) -> list[Value]:
        equation = operation.equation
        name, params = name_of(equation), parameters_of(equation)
        self._check()
        self._count += 1
        if name in _SILENT:
            return []
        if name == "name":
            self._note(params["name"], inputs[0])
        if name in CONSTRAINTS:  # a loop's rows are on the host, not on a mesh
            return inputs
        inner = program_called(equation)
        if inner is not None:
            return self._follow(jaxprs.called(inner), inputs, location, equations)
        if name == "cond":
            branch = params["branches"][int(inputs[0].array)]
            return self._follow(jaxprs.called(branch), inputs[1:], location, equations)
        if name in _LOOPS:
            return self._loop(operation, inputs, location, equations)
        return self._operate(operation, inputs, location, equations)

    def _operate(
        self,
        operation: Operation,
        inputs: list[Value],
        location: Location,
        equations: tuple[Any, ...],
    ) -> list[Value]:
        inputs = [self._written.get(id(x.array), x) for x in inputs]
        operands = [_content(x.array) for x in inputs]
        made = self._run(operation, inputs, location)
        sources = _sources(inputs)
        is_constant = all(x.is_constant for x in inputs)
        is_intended = is_constant and any(map(is_bad, operands))
        if not (sources or is_intended) and any(map(is_bad, made)):
            sources = frozenset([location])
            outputs = list(map(_content, made))
            origin = Origin(location, equations, operands, outputs, self._count)
            self.origins[location] = origin
        values = [self._derived(x, sources) for x in made]
        values = [x._replace(is_constant=is_constant) for x in values]
        count = len(operation.equation.outvars)
        self._written |= {id(x.array): x for x in values[count:]}
        return values[:count]

    def _run(
        self, operation: Operation, inputs: list[Value], location: Location
    ) -> list[Any]:
        """Return an equation's outputs, and the references that it may write to."""
        before = [x._replace(array=_content(x.array)) for x in inputs]
        made = operation.run([x.array for x in inputs])
        references = [x.array for x in inputs if isinstance(x.array, jax.Ref)]
        if location in self._repaired:
            made = [_repair_own(x, before) for x in made]
            for reference in references:
                reference[...] = _repair_own(reference[...], before)
        return [*made, *references]

    def _loop(
        self,
        operation: Operation,
        inputs: list[Value],
        location: Location,
        equations: tuple[Any, ...],
    ) -> list[Value]:
        """Evaluate a loop's body only where its outputs are bad and its inputs good."""
        is_opened = any(other[: len(location)] == location for other in self._repaired)
        writes = any(isinstance(x.array, jax.Ref) for x in inputs)
        sources = _sources(inputs)
        if not (is_opened or writes):  # what writes is evaluated once
            arrays = operation.run([x.array for x in inputs])
            if sources or not any(map(is_bad, arrays)):
                return [self._derived(x, sources) for x in arrays]

        def body(closed: Any, values: list[Value], iteration: int) -> list[Value]:
            program = jaxprs.called(closed)
            return self._follow(program, values, (*location, iteration), equations)

        iterate = _LOOPS[name_of(operation.equation)]
        return iterate(body, operation.equation, inputs)

    def _derived(self, array: Any, sources: frozenset[Location]) -> Value:
        return _derived(array, sources)._replace(made=self._count)

    def _note(self, name: str, value: Value) -> None:
        if name == LOSS:
            self.losses.append(value._replace(made=self._count))
        if not name.startswith(GRADIENT):
            return
        path = name.removeprefix(GRADIENT)
        if path not in self.gradients or not self.gradients[path].sources:
            self.gradients[path] = value


def _constant(array: Any) -> Value:
    return Value(array, is_constant=True)


def is_bad(x: Any) -> bool:
    """Return whether an array has a NaN or an infinity; integers and keys never do."""
    x = _content(x)
    return tree.is_float(x) and not np.isfinite(np.asarray(x)).all()


def _content(x: Any) -> Any:
    """Return the array that a reference holds; another value as it is."""
    return x[...] if isinstance(x, jax.Ref) else x


def repair(x: Any) -> jax.Array:
    """Return x with bad entries replaced by 1, which is safe in a log or a quotient."""
    x = jnp.asarray(x)
    return jnp.where(jnp.isfinite(x), x, jnp.ones_like(x))


def _repair_own(x: Any, inputs: Sequence[Value]) -> Any:
    """Repair the entries that an equation made bad from good inputs."""
    bad_inputs = [value.array for value in inputs if value.sources]
    if not is_bad(x) or any(jnp.shape(y) != jnp.shape(x) for y in bad_inputs):
        return x
    is_own = functools.reduce(lambda own, y: own & jnp.isfinite(y), bad_inputs, True)
    return jnp.where(is_own, repair(x), x)


def _sources(values: Iterable[Value]) -> frozenset[Location]:
    return frozenset().union(*(value.sources for value in values))


def _derived(array: Any, sources: frozenset[Location]) -> Value:
    return Value(array, sources if sources and is_bad(array) else frozenset())


def _scan(body: Any, equation: Any, inputs: list[Value]) -> list[Value]:
    """Iterate a scan; what it scans over has one axis more than its body reads."""
    closed, length = equation.params["jaxpr"], equation.params["length"]
    first, num_carry = scan_counts(equation)
    consts, carry, xs = inputs[:first], inputs[first:], inputs[first + num_carry :]
    carry = carry[:num_carry]
    rows: list[list[Value]] = [[]] * length
    order = range(length)
    for t in reversed(order) if equation.params["reverse"] else order:
        outputs = body(closed, [*consts, *carry, *(_row(x, t) for x in xs)], t)
        carry, rows[t] = outputs[:num_carry], outputs[num_carry:]
    columns = [_stack(column) for column in zip(*rows, strict=True)]
    return [*carry, *columns]


def _scan_of_references(body: Any, equation: Any, inputs: list[Value]) -> list[Value]:
    """Iterate a scan whose carry is in references, of the flag ``jax_scan3``."""
    params = parameters_of(equation)
    pairs = list(zip(inputs, params["extensives"], strict=True))
    rows = [
        body(params["jaxpr"], [_row(x, t) if is_cut else x for x, is_cut in pairs], t)
        for t in range(params["length"])
    ]
    return [_stack(column) for column in zip(*rows, strict=True)]


def _row(x: Value, t: int) -> Value:
    row = _derived(_host(x.array)[t, ...], x.sources)
    return row._replace(is_constant=x.is_constant)


def _stack(column: Sequence[Value]) -> Value:
    rows = [_host(x.array) for x in column]
    is_numpy = isinstance(rows[0], np.ndarray)
    array = (np if is_numpy else jnp).stack(rows)
    return Value(array, _sources(column), max(x.made for x in column))


def _host(x: Any) -> Any:
    """Return x as a NumPy array, whose indexing compiles nothing; keys stay."""
    return x if tree.is_key(x) else np.asarray(x)


def _while(body: Any, equation: Any, inputs: list[Value]) -> list[Value]:
    params = equation.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    of_condition, rest = inputs[:first], inputs[first:]
    of_body, carry = rest[:second], rest[second:]
    iteration = 0
    while body(params["cond_jaxpr"], [*of_condition, *carry], 2 * iteration)[0].array:
        carry = body(params["body_jaxpr"], [*of_body, *carry], 2 * iteration + 1)
        iteration += 1
    return carry


_LOOPS = {"scan": _scan, "Scan3": _scan_of_references, "while": _while}
