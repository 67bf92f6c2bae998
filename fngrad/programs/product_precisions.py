"""How precisely a traced program asks for its products of float32."""

from collections.abc import Iterator
from typing import Any

import jax

import fngrad.programs.equations as equations

_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
_WIDE = ("float32", "complex64")  # the parts of a complex64 are float32


def float32_precisions(jaxpr: Any) -> set[str]:
    """Return the precisions of a program's matrix products and convolutions of float32.

    Args:
        jaxpr: a traced program; those inside its calls, loops and branches count too.

    Returns:
        Names in lower case of `jax.lax.Precision`, ``"default"`` where none is asked
        for, and names of algorithms.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.programs.product_precisions import float32_precisions
        >>> with jax.default_matmul_precision("highest"):
        ...     jaxpr = jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 2)), jnp.ones(2))
        >>> float32_precisions(jaxpr)
        {'highest'}
    """
    return {name for e in jaxpr.eqns for name in _precisions(e)}


def _precisions(equation: Any) -> Iterator[str]:
    for inner in equations.inner_jaxprs(equation):
        yield from float32_precisions(inner)
    if equations.name_of(equation) not in _PRODUCTS:
        return
    if any(str(v.aval.dtype) in _WIDE for v in equation.invars[:2]):
        asked = equation.params["precision"]
        is_pair = type(asked) is tuple  # an algorithm is a named tuple
        for one in asked if is_pair else (asked,):
            yield _name(one)


def _name(precision: Any) -> str:
    """Return the name of a Precision, an algorithm, or None."""
    if precision is None:
        return "default"
    if isinstance(precision, jax.lax.Precision):
        return precision.name.lower()
    if isinstance(precision, jax.lax.DotAlgorithm):
        return "an algorithm of its own"
    return getattr(precision, "name", str(precision))
