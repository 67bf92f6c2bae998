"""The equations of a traced program, read alike on every line of JAX.

Lines of JAX differ in what holds a program (before 0.11.2 a ``ClosedJaxpr`` around an
open ``Jaxpr``, since then a ``Jaxpr`` alone), in the names of primitives that call one,
and in the names of their parameters. The flags ``jax_remat3``, ``jax_scan3``,
``jax_custom_jvp3`` and ``jax_custom_vjp3`` exchange primitives for classes that hold
parameters of their own. What walks through programs asks here.

A *call* evaluates an inner program once. A *reference* is a mutable array: an equation
that reads one may also write to it, so its value depends on all equations before.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

JITS = {"jit", "pjit", "core_call", "closed_call", "eval_jaxpr"}
CHECKPOINTS = {"checkpoint", "remat", "remat2", "RematTraced"}
CALLS = {
    *(*JITS, *CHECKPOINTS),
    *("custom_jvp_call", "CustomJVPTraced"),
    *("custom_vjp_call", "custom_vjp_call_jaxpr", "CustomVJPTraced"),
}
SCANS = {"scan", "Scan3"}
CONSTRAINTS = {"sharding_constraint", "layout_constraint", "optimization_barrier"}
IDENTITIES = {  # what returns its operands, placed or ordered in another way
    *CONSTRAINTS,
    *("reshard", "mesh_cast"),  # along Explicit axes, which are part of a type
}
COPIES = {*IDENTITIES, "name", "copy", "copy_p"}  # and what returns equal values
_NAMED = {"CheckpointName": "name", "CheckpointNameFwd": "name"}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold a call's program


def name_of(equation: Any) -> str:
    """Return the name of an equation's primitive, or of the class in its place.

    What `jax.ad_checkpoint.checkpoint_name` makes is a ``name`` under every flag.
    """
    instance = _instance(equation)
    name = equation.primitive.name if instance is None else type(instance).__name__
    return _NAMED.get(name, name)


def parameters_of(equation: Any) -> dict[str, Any]:
    """Return the static parameters of an equation by name."""
    instance = _instance(equation)
    if instance is None:
        return equation.params
    known = dict(instance.params)
    if "traced" in known:  # by jax.jit, with its program
        known["jaxpr"] = known.pop("traced").jaxpr
    return known


def _instance(equation: Any) -> Any:
    """Return what JAX 0.10 puts in place of a primitive under its flags, or None."""
    return equation.params.get("_prim")


def program_called(equation: Any) -> Any:
    """Return the jaxpr that a call evaluates; None for another equation."""
    if name_of(equation) not in CALLS:
        return None
    parameters = parameters_of(equation)
    return next(parameters[key] for key in _INNER if key in parameters)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs among an equation's parameters, and in tuples of them."""
    for value in parameters_of(equation).values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if is_jaxpr(item):
                yield item


def is_jaxpr(value: Any) -> bool:
    """Return whether a value is a program, with its constants or without."""
    return hasattr(value, "eqns")


def with_constants(jaxpr: Any) -> Any:
    """Return a program that holds its constants; one without such has none."""
    if hasattr(jaxpr, "consts"):
        return jaxpr
    return _core().ClosedJaxpr(jaxpr, ())  # before 0.11.2


def function_of(
    jaxpr: Any, equations: list[Any], inputs: list[Any], outputs: list[Any]
) -> Callable[..., list[Any]]:
    """Return some equations of a program as a function of the values of variables."""
    whole = getattr(jaxpr, "jaxpr", jaxpr)  # without its constants, before 0.11.2
    part = whole.replace(
        constvars=[],
        invars=inputs,
        outvars=outputs,
        eqns=equations,
        effects=whole.effects if any(e.effects for e in equations) else set(),
        debug_info=whole.debug_info.with_unknown_names(),
    )
    return _core().jaxpr_as_fun(with_constants(part))


def scan_counts(equation: Any) -> tuple[int, int]:
    """Return how many inputs of a scan its steps share, and how many it carries.

    They come first, in this order; the rest have an axis more than a step reads, as
    the results after the carry have. Versions of JAX name these numbers differently.
    """
    body = equation.params["jaxpr"]
    carried = _of_equal_rank(equation.outvars, body.outvars)
    return _of_equal_rank(equation.invars, body.invars) - carried, carried


def _of_equal_rank(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    pairs = zip(outer, inner, strict=True)
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)


def scope_of(equation: Any) -> str:
    """Return the names of `jax.named_scope` around an equation, in its own program."""
    return str(equation.source_info.name_stack)


def is_variable(atom: Any) -> bool:
    """Return whether what an equation reads is a variable, not a Literal."""
    return not hasattr(atom, "val")


def is_reference(variable: Any) -> bool:
    """Return whether the value of a variable is a mutable array."""
    return hasattr(variable.aval, "inner_aval")


def outside_effects(jaxpr: Any) -> list[str]:
    """Return the names of a program's effects, apart from those on its own references.

    Example:
        >>> import jax
        >>> from fngrad.programs.equations import outside_effects
        >>> outside_effects(jax.make_jaxpr(lambda x: jax.debug.print("{}", x))(1.0))
        ['Debug']
    """
    own = "InternalMutableArrayEffect"
    return sorted({str(e) for e in jaxpr.effects if type(e).__name__ != own})


def _core() -> Any:
    """Return `jax.extend.core`; imported when used, since its import loads Pallas."""
    import jax.extend.core as core

    return core
