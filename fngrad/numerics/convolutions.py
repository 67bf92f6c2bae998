r"""Convolutions of one example, channels last, that are fast on CPU in any program.

$$y_{p,o} = \sum_{k,i} x_{s p + d k,\, i}\, W_{k,i,o}$$

over the padded x of shape ``(*positions, in)``, with the kernel W of shape
``(*window, in // groups, out)``, the stride $s$ and the dilation $d$.

Here *canonical* is the layout that XLA's fast CPU convolution takes: positions before
channels, a kernel of ``(*window, in, out)``. XLA brings other layouts into it outside
loops only; within a loop it runs them 10 to 40 times slower. JAX's derivatives of a
convolution have other layouts. So there are two implementations:

- ``"native"``: XLA's convolution with JAX's derivatives;
- ``"canonical"``: XLA's convolution whose two gradients are convolutions in the
  canonical layout. With groups, or a window of one position, they are sums of
  products, as is the whole of a depthwise convolution.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

import fngrad.tree as tree
from fngrad.programs.platforms import by_platform

IMPLEMENTATIONS = ("native", "canonical")

# (the canonical implementation, the native one) -> the one to use
Choice: TypeAlias = Callable[[Any, Any], Any]


class Geometry(NamedTuple):
    """Where the windows lie; one entry per axis of the positions."""

    strides: tuple[int, ...]  # positions from one window to the next
    padding: tuple[tuple[int, int], ...]  # zeros before and after
    dilations: tuple[int, ...]  # positions between the entries of a window
    spacings: tuple[int, ...]  # x has this stride, with zeros in between
    groups: int = 1  # of channels, each with outputs of its own


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    implementation: str | None = None,
) -> jax.Array:
    """Return y of shape ``(*positions, out)``; x and the kernel have one float dtype.

    Args:
        x: ``(*positions, in)``, at least as large as the window.
        kernel: ``(*window, in // groups, out)``.
        geometry: stride, padding, dilation, groups.
        implementation: one of ``IMPLEMENTATIONS``; by default ``"canonical"`` where
            the program is lowered for CPU and ``"native"`` elsewhere.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if implementation == "native":
        return native(x, kernel, geometry)
    choice = by_platform if implementation is None else _first
    if geometry.groups == x.shape[-1] > 1:
        return _chosen(choice, products, geometry)(x, kernel)
    # Without the jit, JAX 0.10 fails where `vmap` maps over a NumPy array in a program.
    fast = jax.jit(_with_fast_gradients, static_argnums=(2, 3), inline=True)
    return fast(x, kernel, geometry, choice)


def native(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return XLA's convolution, which has JAX's derivatives."""
    space = "DHW"[-len(geometry.strides) :]
    layouts = f"N{space}C", f"{space}IO", f"N{space}C"
    return _conv(x[None], kernel, geometry, layouts)[0]


def products(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    r"""Return $y_p = \sum_k x_{s p + d k} W_k$ with one product per k, in float32.

    One matrix product alone is in the dtype of x, as that of a dense layer is.
    """
    dtype = x.dtype
    *window, in_size, out_size = kernel.shape
    is_one_matrix = np.prod(window) == 1 and geometry.groups == 1 and in_size > 1
    if not is_one_matrix:
        x, kernel = tree.widen(x), tree.widen(kernel)
    weights = kernel.reshape(-1, in_size, geometry.groups, out_size // geometry.groups)
    parts = contents(x, window, geometry)
    terms = map(_product, parts, weights)
    return functools.reduce(jnp.add, terms).astype(dtype)


def contents(
    x: jax.Array, window: Sequence[int], geometry: Geometry, fill: float = 0.0
) -> Iterator[jax.Array]:
    """Yield the k-th entry of every window, ``(*positions, channels)``, for each k."""
    counts = positions(x.shape[:-1], window, geometry)
    around = [
        (*pair, s - 1)
        for pair, s in zip(geometry.padding, geometry.spacings, strict=True)
    ]
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), [*around, (0, 0, 0)])
    for k in np.ndindex(*window):
        first = np.multiply(k, geometry.dilations)
        last = first + np.multiply(np.subtract(counts, 1), geometry.strides)
        yield lax.slice(
            padded, (*first, 0), (*(last + 1), x.shape[-1]), (*geometry.strides, 1)
        )


def positions(
    sizes: Sequence[int], window: Sequence[int], geometry: Geometry
) -> tuple[int, ...]:
    """Return how many windows lie along each axis."""
    return tuple(
        ((n - 1) * spacing + before + after - (k - 1) * d) // s + 1
        for n, k, s, (before, after), d, spacing in zip(
            sizes, window, *geometry[:4], strict=True
        )
    )


def _first(canonical: Any, native: Any) -> Any:
    return canonical


def _chosen(choice: Choice, canonical: Any, geometry: Geometry) -> Any:
    return choice(
        *(functools.partial(f, geometry=geometry) for f in (canonical, native))
    )


def _conv(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, layouts: Any
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        lhs_dilation=geometry.spacings,
        rhs_dilation=geometry.dilations,
        dimension_numbers=layouts,
        feature_group_count=geometry.groups,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _with_fast_gradients(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, choice: Choice
) -> jax.Array:
    return native(x, kernel, geometry)


def _derivative(
    geometry: Geometry, choice: Choice, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    x, kernel = primals
    dx, d_kernel = tangents
    # The derivatives of this value are canonical in forward mode, as `hvp` takes them.
    y = native(x, kernel, geometry)
    is_dense = geometry.groups == 1 and np.prod(kernel.shape[:-2]) > 1
    terms = []
    if not isinstance(dx, SymbolicZero):
        linear = _chosen(choice, _linear_in_x if is_dense else products, geometry)
        terms.append(linear(dx, kernel))
    if not isinstance(d_kernel, SymbolicZero):
        linear = _chosen(choice, _linear_in_kernel if is_dense else products, geometry)
        terms.append(linear(x, d_kernel))
    return y, functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(y)


_with_fast_gradients.defjvp(_derivative, symbolic_zeros=True)


def _linear_in_x(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return `native`, whose transpose by x is canonical.

    JAX swaps the kernel's channels in the transpose; here they are swapped before.
    """
    space = "DHW"[-len(geometry.strides) :]
    layouts = f"N{space}C", f"{space}OI", f"N{space}C"
    return _conv(x[None], jnp.swapaxes(kernel, -1, -2), geometry, layouts)[0]


def _linear_in_kernel(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return `native`, whose transpose by the kernel is canonical.

    The transpose sums over examples and maps inputs to outputs: JAX lets examples and
    channels of x change places in it.
    """
    space = "DHW"[-len(geometry.strides) :]
    layouts = f"C{space}N", f"I{space}O", f"{space}NC"
    x, kernel = jnp.moveaxis(x, -1, 0)[..., None], jnp.moveaxis(kernel, -2, 0)
    return _conv(x, kernel, geometry, layouts)[..., 0, :]


def _product(part: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiply ``(*positions, channels)`` by a kernel's entry ``(in, groups, out)``."""
    in_size, groups, out_size = weights.shape
    shape = part.shape[:-1]
    if in_size == 1:
        by_channel = weights.reshape((1,) * len(shape) + (groups, out_size))
        return (part[..., None] * by_channel).reshape(*shape, -1)
    apart = part.reshape(*shape, groups, in_size)
    return jnp.einsum("...gi,igo->...go", apart, weights).reshape(*shape, -1)
