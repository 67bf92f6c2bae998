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

CALLS = {  # what they call is part of the program, wherever it stands
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
IDENTITIES = {"sharding_constraint", "layout_constraint", "optimization_barrier"}
_COPIES = {*IDENTITIES, "name", "copy", "copy_p"}  # and what returns equal values
_CALLER = -1  # the reader of the program's outputs


class Slice(NamedTuple):
    """A part of a program; values are named by the program's variables."""

    inputs: list[Any]  # variables that it reads
    outputs: list[Any]  # variables that it makes, for later slices or the caller
    passed_on: set[Any]  # those outputs that later slices read
    run: Callable[..., list[jax.Array]]  # values of inputs -> values of outputs


class Program(NamedTuple):
    """A traced function of arrays; values are named by variables."""

    closed: Any  # jax.extend.core.ClosedJaxpr

    @property
    def inputs(self) -> list[Any]:
        """The variables of the arguments' leaves."""
        return list(self.closed.jaxpr.invars)

    @property
    def outputs(self) -> list[Any]:
        """The variables of the results' leaves; a constant one is a Literal."""
        return list(self.closed.jaxpr.outvars)

    @property
    def constants(self) -> dict[Any, Any]:
        """The arrays that the function closes over, by variable."""
        return dict(zip(self.closed.jaxpr.constvars, self.closed.consts, strict=True))


class Operation(NamedTuple):
    """One equation of a program."""

    equation: Any
    run: Callable[[Sequence[Any]], list[jax.Array]]  # all inputs -> all outputs
    last_uses: list[Any]  # variables that no later equation reads


def trace(fn: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """Return a function's program and its result's structure; only shapes are read."""
    closed, result = jax.make_jaxpr(fn, return_shape=True)(*args)
    return Program(closed), jax.tree.structure(result)


def scan_counts(equation: Any) -> tuple[int, int]:
    """Return how many inputs of a scan its steps share, and how many it carries.

    They come first, in this order; the rest have an axis more than a step reads, as
    the results after the carry have. Versions of JAX name these numbers differently.
    """
    body = called(equation.params["jaxpr"])
    carried = _of_equal_rank(equation.outvars, body.outputs)
    return _of_equal_rank(equation.invars, body.inputs) - carried, carried


def _of_equal_rank(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    pairs = zip(outer, inner, strict=True)
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)


def is_variable(output: Any) -> bool:
    """Return whether an output is a variable, not a Literal."""
    return not _is_literal(output)


def read(values: dict[Any, Any], variable: Any) -> Any:
    """Return the value of a variable, or of a Literal."""
    return variable.val if _is_literal(variable) else values[variable]


def is_jaxpr(value: Any) -> bool:
    """Return whether a parameter of an equation is a closed or an open jaxpr."""
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def inner_jaxprs(parameters: dict[str, Any]) -> list[Any]:
    """Return the jaxprs among the parameters of an equation."""
    return list(filter(is_jaxpr, parameters.values()))


def passed_through(closed: Any) -> list[int | None]:
    """Return which argument each result of a program is, whatever its values.

    Args:
        closed: a closed or an open jaxpr.

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
    jaxpr = getattr(closed, "jaxpr", closed)
    known: dict[Any, int] = {v: i for i, v in enumerate(jaxpr.invars)}

    def index(variable: Any) -> int | None:
        return None if hasattr(variable, "val") else known.get(variable)

    for equation in jaxpr.eqns:
        results = _results(equation, [index(v) for v in equation.invars])
        pairs = zip(equation.outvars, results, strict=False)
        known.update((made, i) for made, i in pairs if i is not None)
    return [index(v) for v in jaxpr.outvars]


def _results(equation: Any, inputs: list[int | None]) -> list[int | None]:
    """Return which argument each result is, from those that the inputs are."""
    name, parameters = equation.primitive.name, equation.params

    def through(inner: Any, given: list[int | None]) -> list[int | None]:
        return [None if i is None else given[i] for i in passed_through(inner)]

    if name in _COPIES:
        return inputs
    if name in CALLS:
        return through(inner_jaxprs(parameters)[0], inputs)
    if name == "scan":
        return _kept(parameters["jaxpr"], scan_counts(equation)[0], inputs)
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
    equations = program.closed.jaxpr.eqns
    kept = set(filter(is_variable, program.outputs))
    last = {v: i for i, e in enumerate(equations) for v in [*_variables(e), *e.outvars]}
    last_uses: dict[int, list[Any]] = {}
    for variable, index in last.items():
        if variable not in kept:
            last_uses.setdefault(index, []).append(variable)
    for index, equation in enumerate(equations):
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
    run = _part(program.closed, [equation], list(known), list(equation.outvars))
    return run(*known.values())


def called(closed: Any) -> Program:
    """Return the program inside an equation, from a closed or an open jaxpr."""
    if hasattr(closed, "jaxpr"):
        return Program(closed)
    return Program(_core().ClosedJaxpr(closed, ()))


def slices(program: Program) -> Iterator[Slice]:
    """Yield a slice for each output that needs one, in the outputs' order."""
    equations = program.closed.jaxpr.eqns
    owners = _owners(equations, program.outputs)
    groups: list[list[Any]] = [[] for _ in range(len(program.outputs) + 1)]
    readers: dict[Any, set[int]] = {
        v: {_CALLER} for v in program.outputs if is_variable(v)
    }
    for equation, owner in zip(equations, owners, strict=True):
        groups[owner].append(equation)
        for variable in _variables(equation):
            readers.setdefault(variable, set()).add(owner)
    for owner, group in enumerate(groups):
        if group:
            yield _cut(program.closed, group, readers, owner)


def _core() -> Any:
    """Return `jax.extend.core`; imported when used, since its import loads Pallas."""
    import jax.extend.core as core

    return core


def _is_literal(variable: Any) -> bool:
    return isinstance(variable, _core().Literal)


def _variables(equation: Any) -> list[Any]:
    return list(filter(is_variable, equation.invars))


def _owners(equations: Sequence[Any], outputs: Sequence[Any]) -> list[int]:
    """Return each equation's first output that needs it; the count where none does."""
    maker = {v: i for i, equation in enumerate(equations) for v in equation.outvars}
    owners = [len(outputs)] * len(equations)
    for owner, output in enumerate(outputs):
        todo = [output] if is_variable(output) else []
        while todo:
            i = maker.get(todo.pop())
            if i is not None and owners[i] == len(outputs):
                owners[i] = owner
                todo += _variables(equations[i])
    return owners


def _cut(
    closed: Any, group: list[Any], readers: dict[Any, set[int]], owner: int
) -> Slice:
    made = dict.fromkeys(v for equation in group for v in equation.outvars)
    inputs = dict.fromkeys(
        v for equation in group for v in _variables(equation) if v not in made
    )
    outside = {v: readers.get(v, set()) - {owner} for v in made}
    outputs = [v for v in made if outside[v]]
    run = _part(closed, group, list(inputs), outputs)
    passed_on = {v for v in outputs if outside[v] - {_CALLER}}
    return Slice(list(inputs), outputs, passed_on, run)


def _part(
    closed: Any, equations: list[Any], inputs: list[Any], outputs: list[Any]
) -> Callable[..., list[jax.Array]]:
    """Return some equations as a function of the values of their inputs."""
    jaxpr = closed.jaxpr
    part = jaxpr.replace(
        constvars=[],
        invars=inputs,
        outvars=outputs,
        eqns=equations,
        effects=jaxpr.effects if any(e.effects for e in equations) else set(),
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    core = _core()
    run = core.jaxpr_as_fun(core.ClosedJaxpr(part, []))
    return lambda *values: list(run(*values))
