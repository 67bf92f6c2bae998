"""What a function costs: floating point operations and bytes, from its program.

XLA's own count takes the body of a loop once, whatever its length, and a compiled
program is needed for it. This one multiplies by the trip count and only traces.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import fngrad.programs.equations as equations
import fngrad.programs.jaxprs as jaxprs
import fngrad.programs.text_tables as text_tables
from fngrad.programs.printed import preformatted
from fngrad.programs.signatures import check_function


class Costs(NamedTuple):
    """Operations and bytes of one call of a function."""

    products: int  # FLOPs of matrix products and convolutions
    others: int  # FLOPs of everything else, one per entry
    bytes: int  # see `costs`
    uncounted: dict[str, int]  # primitives by name, and how often each occurs

    @property
    def flops(self) -> int:
        """All floating point operations."""
        return self.products + self.others

    def _repr_html_(self) -> str:
        *numbers, uncounted = zip(self._fields, self, strict=True)
        rows = [[name, f"{number:,}"] for name, number in numbers]
        if uncounted[1]:
            rows.append([uncounted[0], str(uncounted[1])])
        return preformatted(text_tables.table(rows, left=1))


def costs(fn: Callable[..., Any], *args: Any) -> Costs:
    r"""Count the operations and bytes of ``fn(*args)``; only shapes are read.

    A product of $(m, k)$ and $(k, n)$ takes $2mkn$ FLOPs; a convolution two for each
    pair of a kernel's entry and an input's entry that meet, padding and dilation left
    out. Any other equation with a float result takes one per entry, a reduction one per
    entry that it reads; what only moves or converts data takes none. Loops count by
    their lengths, of the branches of a ``cond`` the most expensive one, and what
    `jax.checkpoint` computes again counts again.

    ``bytes`` are those of the arguments and results, and of the operands and results
    of products: the traffic to memory if everything else is fused.

    Args:
        fn: a traceable function, such as a step or a gradient.
        args: arrays or ShapeDtypeStructs.

    Returns:
        Costs. ``uncounted`` names what has no count: loops of unknown length (their
        bodies count once), decompositions such as ``eigh``, Fourier transforms, ragged
        products, kernels of one's own.

    Raises:
        TypeError: if ``fn`` is not a function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> def deep(w, x):
        ...     return jax.lax.scan(lambda x, w: (jnp.tanh(w @ x), None), x, w)[0]
        >>> fg.costs(deep, jnp.ones((10, 4, 4)), jnp.ones(4))
        Costs(products=320, others=40, bytes=1632, uncounted={})
    """
    check_function(fn)
    program, _ = jaxprs.trace(fn, *args)
    return costs_of(program)


def costs_of(program: jaxprs.Program) -> Costs:
    """Count the operations and bytes of a traced program, as `costs` does."""
    uncounted: Counter[str] = Counter()
    inside = _count(program.closed, uncounted)
    moved = sum(map(_bytes, [*program.inputs, *program.outputs]))
    return Costs(*inside[:2], inside.bytes + moved, dict(uncounted))


def product_bytes_of(program: jaxprs.Program) -> int:
    """Count the bytes of the operands and results of products, in loops by lengths."""
    return _count(program.closed, Counter()).bytes


class _Sum(NamedTuple):
    """Costs of a part of a program."""

    products: int = 0
    others: int = 0
    bytes: int = 0

    def plus(self, other: "_Sum") -> "_Sum":
        return _Sum(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "_Sum":
        return _Sum(*(count * a for a in self))


# What moves, selects or converts data, or draws random bits.
_MOVES = {
    "all_gather",
    "all_to_all",
    "approx_top_k",
    "bitcast_convert_type",
    "broadcast_in_dim",
    "complex",
    "concatenate",
    "convert_element_type",
    "copy",
    "device_put",
    "dynamic_slice",
    "dynamic_update_slice",
    "freeze",
    "gather",
    "get",
    "imag",
    "iota",
    "layout_constraint",
    "mesh_cast",
    "mutable_array",
    "name",
    "new_ref",
    "optimization_barrier",
    "pad",
    "pcast",
    "ppermute",
    "pvary",
    "real",
    "reduce_precision",
    "reshape",
    "reshard",
    "rev",
    "scatter",
    "select_n",
    "sharding_constraint",
    "slice",
    "sort",
    "split",
    "squeeze",
    "stop_gradient",
    "swap",
    "top_k",
    "transpose",
}
_UNCOUNTED = {
    "cholesky",
    "eig",
    "eigh",
    "ffi_call",
    "fft",
    "hessenberg",
    "householder_product",
    "io_callback",
    "lu",
    "pallas_call",
    "pure_callback",
    "qr",
    "ragged_dot_general",
    "schur",
    "svd",
    "symmetric_product",
    "triangular_solve",
    "tridiagonal",
    "tridiagonal_solve",
}


def _count(jaxpr: Any, uncounted: Counter[str]) -> _Sum:
    total = _Sum()
    for equation in jaxpr.eqns:
        total = total.plus(_equation(equation, uncounted))
    return total


def _equation(equation: Any, uncounted: Counter[str]) -> _Sum:
    name, parameters = equations.name_of(equation), equations.parameters_of(equation)
    if name in _UNCOUNTED:
        uncounted[name] += 1
        return _Sum()
    if name in ("dot_general", "conv_general_dilated"):
        count = _dot if name == "dot_general" else _convolution
        moved = sum(map(_bytes, [*equation.invars, *equation.outvars]))
        return _Sum(count(equation) * _per_product(equation), 0, moved)
    if name == "cond":
        branches = [_count(b, uncounted) for b in parameters["branches"]]
        return max(branches, key=lambda cost: cost.products + cost.others)
    if name.startswith(("reduce", "scatter", "select_and")):
        return _Sum(others=_reduction(equation))
    if name == "custom_linear_solve":
        return _count(parameters["jaxprs"].solve, uncounted)
    inside = [_count(each, uncounted) for each in equations.inner_jaxprs(equation)]
    if not inside:
        return _Sum(others=_entries(equation))
    if name == "while":
        uncounted[name] += 1
    return functools.reduce(_Sum.plus, inside).times(_times(name, parameters))


def _times(name: str, parameters: dict[str, Any]) -> int:
    """Return how often an equation runs the program inside of it."""
    if name in equations.SCANS:
        return parameters["length"]
    # What stands in a shard_map is the part of one device.
    return parameters["mesh"].size if name == "shard_map" else 1


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return _size(equation.outvars[0]) * math.prod(shape[i] for i in contracted)


def _convolution(equation: Any) -> int:
    """Return how often an entry of the kernel meets an entry of the input."""
    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    x, kernel = (v.aval.shape for v in equation.invars[:2])
    y = equation.outvars[0].aval.shape
    meetings = [
        _meetings(x[i], kernel[j], y[k], *window)
        for i, j, k, *window in zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            numbers.out_spec[2:],
            parameters["window_strides"],
            parameters["padding"],
            parameters["lhs_dilation"],
            parameters["rhs_dilation"],
            strict=True,
        )
    ]
    batch, features = (y[i] for i in numbers.out_spec[:2])
    return batch * features * kernel[numbers.rhs_spec[1]] * math.prod(meetings)


def _meetings(
    size: int,
    kernel: int,
    outputs: int,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    kernel_dilation: int,
) -> int:
    """Return the number of pairs of an output and a kernel's entry that read x."""
    at = np.arange(outputs)[:, None] * stride - padding[0]
    at = at + np.arange(kernel) * kernel_dilation
    is_inside = (at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)
    return int(np.sum(is_inside))


def _per_product(equation: Any) -> int:
    """Return 2 for a product and its sum, 8 for complex ones."""
    dtype = equation.outvars[0].aval.dtype
    return 8 if jnp.issubdtype(dtype, jnp.complexfloating) else 2


def _reduction(equation: Any) -> int:
    name, parameters = equations.name_of(equation), equation.params
    if name in _MOVES or not _is_inexact(equation.outvars[0]):
        return 0
    if name.startswith("scatter"):
        return _size(equation.invars[2])
    if "window_dimensions" in parameters:
        return _size(equation.outvars[0]) * math.prod(parameters["window_dimensions"])
    return _size(equation.invars[0])


def _entries(equation: Any) -> int:
    name = equations.name_of(equation)
    if name in _MOVES or name.startswith("random_"):
        return 0
    return sum(_size(v) for v in equation.outvars if _is_inexact(v))


def _is_inexact(variable: Any) -> bool:
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _size(variable: Any) -> int:
    return math.prod(getattr(variable.aval, "shape", ()))


def _bytes(variable: Any) -> int:
    dtype = getattr(variable.aval, "dtype", None)
    return 0 if dtype is None else _size(variable) * dtype.itemsize
