"""A program evaluated equation by equation, watching where numbers go bad.

A number is *bad* that is not finite. An equation whose inputs are good and whose
outputs are not is a *suspect*; every bad value knows the suspects it comes from, so
what was masked away leads nowhere. Infinities that the program itself contains, in
literals and constants, are *meant*, and count as good, also once they are broadcast
or cast; what lets them in among the numbers of a step is suspected. A *repair* puts 1
in the place of what a suspect made bad, and so shows what it did; what is bad because
an input was is left.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.programs.slices as slices
from fngrad.programs.slices import Operation, Program
from fngrad.types import Path

# The equation's number; within another equation after that one's, and in a loop after
# the number of the iteration. (INPUT, i) is argument i of the program.
Place: TypeAlias = tuple[int, ...]
INPUT = -1

CALLS = {  # equations that are their inner program
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
_SILENT = {"debug_callback", "debug_print"}  # equations that are left out
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold that program
# Names that `fngrad.training.loss_forms` gives to values.
GRADIENT, LOSS = "gradient/", "loss"


class Value(NamedTuple):
    """What an equation reads or makes."""

    array: Any
    sources: frozenset[Place] = frozenset()  # of what is bad in it
    made: int = 0  # how many equations had been evaluated
    is_constant: bool = False  # it depends on no argument


class Suspect(NamedTuple):
    """Where bad numbers appeared first."""

    place: Place
    equations: tuple[Any, ...]  # it and those around it; none for an argument
    inputs: list[Any]
    outputs: list[Any]
    made: int = 0  # how many equations had been evaluated

    @property
    def scopes(self) -> str:
        """Its name stack, with those of the equations around it."""
        outermost_first = reversed(self.equations)
        return "/".join(str(e.source_info.name_stack) for e in outermost_first)


class Walk:
    """One evaluation of a program.

    Args:
        program: what to evaluate.
        repaired: where to repair.
        check: called before every equation; may raise to give up.
    """

    def __init__(
        self,
        program: Program,
        repaired: Iterable[Place] = (),
        check: Callable[[], None] = lambda: None,
    ):
        self.suspects: dict[Place, Suspect] = {}  # in the order of evaluation
        self.gradients: dict[Path, Value] = {}  # as the program names them
        self.losses: list[Value] = []  # likewise, in the order of evaluation
        self._program = program
        self._repaired = frozenset(repaired)
        self._check = check
        self._count = 0

    def run(self, arrays: Sequence[Any]) -> list[Value]:
        """Return the program's outputs."""
        inputs = [self._argument(i, array) for i, array in enumerate(arrays)]
        return self._follow(self._program, inputs, (), ())

    def _argument(self, index: int, array: Any) -> Value:
        place = (INPUT, index)
        if not is_bad(array):
            return Value(array)
        if place in self._repaired:
            return Value(repair(array))
        self.suspects[place] = Suspect(place, (), [], [array])
        return Value(array, frozenset([place]))

    def _follow(
        self,
        program: Program,
        inputs: Sequence[Value],
        place: Place,
        around: tuple[Any, ...],
    ) -> list[Value]:
        known = {v: _constant(array) for v, array in program.constants.items()}
        known |= zip(program.inputs, inputs, strict=True)

        def read(variable: Any) -> Value:
            if slices.is_variable(variable):
                return known[variable]
            return _constant(slices.read({}, variable))

        for index, operation in enumerate(slices.operations(program)):
            equation = operation.equation
            values = [read(v) for v in equation.invars]
            here = (*place, index), (equation, *around)
            outputs = self._evaluate(operation, values, *here)
            known |= zip(equation.outvars, outputs, strict=True)
            for variable in operation.dying:
                known.pop(variable, None)
        return [read(v) for v in program.outputs]

    def _evaluate(
        self,
        operation: Operation,
        inputs: list[Value],
        place: Place,
        equations: tuple[Any, ...],
    ) -> list[Value]:
        name, params = operation.equation.primitive.name, operation.equation.params
        self._check()
        self._count += 1
        if name in _SILENT:
            return []
        if name == "name":
            self._note(params["name"], inputs[0])
        if name in CALLS:
            inner = next(params[key] for key in _INNER if key in params)
            return self._follow(slices.called(inner), inputs, place, equations)
        if name == "cond":
            branch = params["branches"][int(inputs[0].array)]
            return self._follow(slices.called(branch), inputs[1:], place, equations)
        if name in _LOOPS:
            return self._loop(operation, inputs, place, equations)
        return self._operate(operation, inputs, place, equations)

    def _operate(
        self,
        operation: Operation,
        inputs: list[Value],
        place: Place,
        equations: tuple[Any, ...],
    ) -> list[Value]:
        given = [x.array for x in inputs]
        arrays = operation.run(given)
        if place in self._repaired:
            arrays = [_repair_own(x, inputs) for x in arrays]
        sources = _sources(inputs)
        is_constant = all(x.is_constant for x in inputs)
        is_meant = is_constant and any(map(is_bad, given))
        if not (sources or is_meant) and any(map(is_bad, arrays)):
            sources = frozenset([place])
            found = Suspect(place, equations, given, arrays, self._count)
            self.suspects[place] = found
        made = [self._derived(x, sources) for x in arrays]
        return [x._replace(is_constant=is_constant) for x in made]

    def _loop(
        self,
        operation: Operation,
        inputs: list[Value],
        place: Place,
        equations: tuple[Any, ...],
    ) -> list[Value]:
        """Look into a loop only where it makes something bad out of good inputs."""
        is_opened = any(other[: len(place)] == place for other in self._repaired)
        sources = _sources(inputs)
        if not is_opened:
            arrays = operation.run([x.array for x in inputs])
            if sources or not any(map(is_bad, arrays)):
                return [self._derived(x, sources) for x in arrays]

        def body(closed: Any, values: list[Value], iteration: int) -> list[Value]:
            program = slices.called(closed)
            return self._follow(program, values, (*place, iteration), equations)

        iterate = _LOOPS[operation.equation.primitive.name]
        return iterate(body, operation.equation, inputs)

    def _derived(self, array: Any, sources: frozenset[Place]) -> Value:
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
    """Say whether an array holds a NaN or an infinity; integers and keys never do."""
    is_inexact = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
    return is_inexact and not np.isfinite(np.asarray(x)).all()


def repair(x: Any) -> jax.Array:
    """Return x with 1 in the place of what is bad: safe under a log and a division."""
    x = jnp.asarray(x)
    return jnp.where(jnp.isfinite(x), x, jnp.ones_like(x))


def _repair_own(x: Any, inputs: Sequence[Value]) -> Any:
    """Repair what an equation made bad of good numbers."""
    bad_inputs = [value.array for value in inputs if value.sources]
    if not is_bad(x) or any(jnp.shape(y) != jnp.shape(x) for y in bad_inputs):
        return x
    is_own = functools.reduce(lambda own, y: own & jnp.isfinite(y), bad_inputs, True)
    return jnp.where(is_own, repair(x), x)


def _sources(values: Iterable[Value]) -> frozenset[Place]:
    return frozenset().union(*(value.sources for value in values))


def _derived(array: Any, sources: frozenset[Place]) -> Value:
    return Value(array, sources if sources and is_bad(array) else frozenset())


def _scan(body: Any, equation: Any, inputs: list[Value]) -> list[Value]:
    """Iterate a scan; what it runs over has one axis more than its body reads."""
    closed, length = equation.params["jaxpr"], equation.params["length"]
    inner = slices.called(closed)
    over = [
        np.ndim(x.array) > len(variable.aval.shape)
        for x, variable in zip(inputs, inner.inputs, strict=True)
    ]
    stacks = [
        len(out.aval.shape) > len(variable.aval.shape)
        for out, variable in zip(equation.outvars, inner.outputs, strict=True)
    ]
    num_carry = stacks.count(False)
    first = over.count(False) - num_carry
    consts, carry, xs = inputs[:first], inputs[first:], inputs[first + num_carry :]
    carry = carry[:num_carry]
    rows: list[list[Value]] = [[]] * length
    order = range(length)
    for t in reversed(order) if equation.params["reverse"] else order:
        now = [
            _derived(_host(x.array)[t, ...], x.sources)._replace(
                is_constant=x.is_constant
            )
            for x in xs
        ]
        outputs = body(closed, [*consts, *carry, *now], t)
        carry, rows[t] = outputs[:num_carry], outputs[num_carry:]
    columns = [_stack(column) for column in zip(*rows, strict=True)]
    return [*carry, *columns]


def _stack(column: Sequence[Value]) -> Value:
    rows = [_host(x.array) for x in column]
    is_numpy = isinstance(rows[0], np.ndarray)
    array = (np if is_numpy else jnp).stack(rows)
    return Value(array, _sources(column), max(x.made for x in column))


def _host(x: Any) -> Any:
    """Return x where indexing compiles nothing; keys stay as they are."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


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


_LOOPS = {"scan": _scan, "while": _while}
