"""A traced function: its equations one by one, or cut into slices.

A *slice* is the part of a program that one output needs and no earlier output does. A
rule that treats its leaves separately has one slice per leaf, so that a large temporary
(a decoded moment) exists for one leaf at a time. A rule that mixes its leaves has a
large first slice.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.programs.equations as equations
from fngrad.programs.equations import is_variable

_CALLER = -1  # the reader of the program's outputs


class Slice(NamedTuple):
    """A part of a program; values are named by the program's variables."""

    inputs: list[Any]  # variables that it reads
    outputs: list[Any]  # variables that it makes, for later slices or the caller
    passed_on: set[Any]  # those outputs that later slices read
    run: Callable[..., list[jax.Array]]  # values of inputs -> values of outputs


class Program(NamedTuple):
    """A traced function of arrays; values are named by variables."""

    closed: Any  # a jaxpr with its constants

    @property
    def inputs(self) -> list[Any]:
        """The variables of the arguments' leaves."""
        return list(self.closed.invars)

    @property
    def outputs(self) -> list[Any]:
        """The variables of the results' leaves; a constant one is a Literal."""
        return list(self.closed.outvars)

    @property
    def constants(self) -> dict[Any, Any]:
        """The arrays that the function closes over, by variable."""
        return dict(zip(self.closed.constvars, self.closed.consts, strict=True))


class Operation(NamedTuple):
    """One equation of a program."""

    equation: Any
    run: Callable[[Sequence[Any]], list[jax.Array]]  # all inputs -> all outputs
    last_uses: list[Any]  # variables that no later equation reads


def trace(fn: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """Return a function's program and its result's structure; only shapes are read."""
    closed, result = jax.make_jaxpr(fn, return_shape=True)(*args)
    return Program(closed), jax.tree.structure(result)


def read(values: dict[Any, Any], variable: Any) -> Any:
    """Return the value of a variable, or of a Literal."""
    return values[variable] if is_variable(variable) else variable.val


def output(values: dict[Any, Any], variable: Any) -> Any:
    """Return the value of an output; a Literal becomes an array of its dtype."""
    value = read(values, variable)
    if is_variable(variable):
        return value
    of = variable.aval
    return jnp.asarray(value, None if of.weak_type else of.dtype)


def passed_through(jaxpr: Any) -> list[int | None]:
    """Return which argument each result of a program is, whatever its values.

    Args:
        jaxpr: a traced program.

    Returns:
        For each result the index of the argument's leaf that it returns unchanged, also
        through calls, loops and branches; None for one that is computed.

    Example:
        >>> import jax
        >>> from fngrad.programs.jaxprs import passed_through
        >>> swap = jax.jit(lambda x, y: (y, x, x + y))
        >>> passed_through(jax.make_jaxpr(swap)(1.0, 2.0))
        [1, 0, None]
    """
    known: dict[Any, int] = {v: i for i, v in enumerate(jaxpr.invars)}

    def index(variable: Any) -> int | None:
        return known.get(variable) if is_variable(variable) else None

    for equation in jaxpr.eqns:
        results = _results(equation, [index(v) for v in equation.invars])
        pairs = zip(equation.outvars, results, strict=False)
        known.update((made, i) for made, i in pairs if i is not None)
    return [index(v) for v in jaxpr.outvars]


def _results(equation: Any, inputs: list[int | None]) -> list[int | None]:
    """Return which argument each result is, from those that the inputs are."""
    name, parameters = equations.name_of(equation), equation.params

    def through(inner: Any, given: list[int | None]) -> list[int | None]:
        return [None if i is None else given[i] for i in passed_through(inner)]

    if name in equations.COPIES:
        return inputs
    inner = equations.program_called(equation)
    if inner is not None:
        return through(inner, inputs)
    if name == "scan":
        return _kept(parameters["jaxpr"], equations.scan_counts(equation)[0], inputs)
    if name == "while":
        inputs = inputs[parameters["cond_nconsts"] :]
        return _kept(parameters["body_jaxpr"], parameters["body_nconsts"], inputs)
    if name == "cond":
        branches = (through(each, inputs[1:]) for each in parameters["branches"])
        results = zip(*branches, strict=True)
        return [each[0] if len({*each}) == 1 else None for each in results]
    return []


def _kept(body: Any, shared: int, inputs: list[int | None]) -> list[int | None]:
    """Return which argument each result of a loop is: what its body passes on."""
    passed = enumerate(passed_through(body), shared)
    return [inputs[at] if i == at else None for at, i in passed]


def operations(program: Program) -> Iterator[Operation]:
    """Yield the program's equations in their order."""
    kept = set(filter(is_variable, program.outputs))
    order = list(enumerate(program.closed.eqns))
    last = {v: i for i, e in order for v in [*_variables(e), *e.outvars]}
    last_uses: dict[int, list[Any]] = {}
    for variable, index in last.items():
        if variable not in kept:
            last_uses.setdefault(index, []).append(variable)
    for index, equation in order:
        run = functools.partial(_run_equation, program, equation)
        yield Operation(equation, run, last_uses.get(index, []))


def _run_equation(
    program: Program, equation: Any, values: Sequence[Any]
) -> list[jax.Array]:
    known = {
        variable: value
        for variable, value in zip(equation.invars, values, strict=True)
        if is_variable(variable)
    }
    made, whole = list(equation.outvars), program.closed
    return equations.function_of(whole, [equation], list(known), made)(*known.values())


def called(jaxpr: Any) -> Program:
    """Return the program inside an equation."""
    return Program(equations.with_constants(jaxpr))


def slices(program: Program) -> Iterator[Slice]:
    """Yield a slice for each output that needs one, in the outputs' order."""
    owners = _owners(program.closed.eqns, program.outputs)
    groups: list[list[Any]] = [[] for _ in range(len(program.outputs) + 1)]
    readers: dict[Any, set[int]] = {
        v: {_CALLER} for v in program.outputs if is_variable(v)
    }
    for equation, owner in zip(program.closed.eqns, owners, strict=True):
        groups[owner].append(equation)
        for variable in _variables(equation):
            readers.setdefault(variable, set()).add(owner)
    for owner, group in enumerate(groups):
        if group:
            yield _cut(program.closed, group, readers, owner)


def _variables(equation: Any) -> list[Any]:
    return list(filter(is_variable, equation.invars))


def _owners(eqns: Sequence[Any], outputs: Sequence[Any]) -> list[int]:
    """Return each equation's first output that needs it; the count where none does."""
    makers: dict[Any, list[int]] = {}
    for i, equation in enumerate(eqns):
        for variable in [*equation.outvars, *_references(equation)]:
            makers.setdefault(variable, []).append(i)
    owners = [len(outputs)] * len(eqns)
    for owner, output in enumerate(outputs):
        todo = [output] if is_variable(output) else []
        while todo:
            for i in makers.get(todo.pop(), ()):
                if owners[i] == len(outputs):
                    owners[i] = owner
                    todo += _variables(eqns[i])
    return owners


def _references(equation: Any) -> list[Any]:
    """Return the references that an equation reads or writes; a slice has all."""
    return list(filter(equations.is_reference, _variables(equation)))


def _cut(
    closed: Any, group: list[Any], readers: dict[Any, set[int]], owner: int
) -> Slice:
    made = dict.fromkeys(v for equation in group for v in equation.outvars)
    inputs = dict.fromkeys(
        v for equation in group for v in _variables(equation) if v not in made
    )
    outside = {v: readers.get(v, set()) - {owner} for v in made}
    outputs = [v for v in made if outside[v]]
    run = equations.function_of(closed, group, list(inputs), outputs)
    passed_on = {v for v in outputs if outside[v] - {_CALLER}}
    return Slice(list(inputs), outputs, passed_on, run)
