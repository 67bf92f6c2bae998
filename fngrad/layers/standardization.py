r"""The arithmetic of normalization: $y = (x - m) / \sqrt{v + \epsilon}$."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics


class Over(NamedTuple):
    """What is normalized over."""

    axes: tuple[int, ...]
    axis_name: str | Sequence[str] | None = None  # of mapped axes

    def __call__(self, reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
        """Return jnp.mean or jnp.max over the axes, which are dropped."""
        reduced = reduce(x, axis=self.axes)
        if self.axis_name is None:
            return reduced
        merge = lax.pmax if reduce is jnp.max else lax.pmean
        try:
            return merge(reduced, self.axis_name)
        except NameError as error:
            raise ValueError(
                f"need an axis called {self.axis_name!r} to take batch statistics "
                "over, as fngrad.layers.batched makes, got none"
            ) from error

    def spread(self, reduced: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return what was reduced, broadcast back to the shape it came from.

        In one operation: sizes of 1, as of `keepdims`, cost XLA more than they save.
        """
        axes = {axis % len(shape) for axis in self.axes}
        others = [axis for axis in range(len(shape)) if axis not in axes]
        return lax.broadcast_in_dim(reduced, shape, others)


class Standardized(NamedTuple):
    """What a normalization computes, of x / s with s a power of two."""

    y: jax.Array
    root: jax.Array  # r = 1 / sqrt(var + eps / s**2)
    scale: jax.Array  # s
    mean: jax.Array
    var: jax.Array


def standardize(
    eps: float, over: Over, x: jax.Array, is_centered: bool = True
) -> Standardized:
    """Return (x - mean) / sqrt(var + eps), or with a mean of 0, and how it is made.

    Args:
        eps: in squared units of x.
        over: what the mean and the variance are taken over.
        x: at least float32.
        is_centered: whether the mean is subtracted.
    """
    spread = functools.partial(over.spread, shape=x.shape)
    root_of_eps = np.sqrt(np.asarray(eps, x.dtype))
    largest = over(jnp.max, lax.abs(lax.stop_gradient(x)))
    # No square overflows or vanishes, and division by it rounds nothing.
    scale = numerics.power_of_two_below(jnp.maximum(largest, root_of_eps))
    x, mean = x * spread(1 / scale), jnp.zeros_like(scale)
    if is_centered:
        mean = over(jnp.mean, x)
        x = x - spread(mean)
        # What the mean's rounding has left in all entries; it has no derivative.
        rest, square = over(jnp.mean, x), over(jnp.mean, lax.square(x))
        rest = lax.stop_gradient(rest)
        x, mean = x - spread(rest), mean + rest
        var = lax.max(square - lax.square(rest), jnp.zeros_like(square))
    else:
        var = over(jnp.mean, lax.square(x))
    with_eps = var
    if eps > 0:  # XLA may square 1 / s by itself, which may overflow: times 0 it is NaN
        with_eps = var + lax.square(root_of_eps / scale)
    root = numerics.inverse_root(with_eps)
    return Standardized(x * spread(root), root, scale, mean, var)


def standardize_example(
    eps: float, over: Over, x: jax.Array, is_centered: bool = True
) -> Standardized:
    """Return `standardize` over axes of x alone, traced once for all x of one shape.

    Its derivative is in closed form, which compiles faster. JAX cannot differentiate
    such a function along mapped axes under `jax.checkpoint`. The mean and the variance
    have no derivative.
    """
    return _standardize_example(eps, over, is_centered, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _standardize_example(
    eps: float, over: Over, is_centered: bool, x: jax.Array
) -> Standardized:
    return standardize(eps, over, x, is_centered)


@_standardize_example.defjvp
def _standardize_example_jvp(
    eps: float, over: Over, is_centered: bool, primals: Any, tangents: Any
) -> tuple[Standardized, Standardized]:
    r"""With $\dot x$ the slope of x / s, centered if x is,

    $$\dot y = r\,(\dot x - y\,\mathrm{mean}(y\,\dot x)), \quad
    \dot r = -r^2\,\mathrm{mean}(y\,\dot x).$$
    """
    made = _standardize_example(eps, over, is_centered, *primals)
    return made, _slopes(over, is_centered, made, *tangents)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _slopes(
    over: Over, is_centered: bool, made: Standardized, slope: jax.Array
) -> Standardized:
    spread = functools.partial(over.spread, shape=slope.shape)
    # Where r is 0 so is y, whatever x is; the scale of such an x may be tiny.
    slope = slope * spread(numerics.replaced(made.root == 0, 1 / made.scale, 0))
    if is_centered:
        slope = slope - spread(over(jnp.mean, slope))
    along = over(jnp.mean, made.y * slope)
    zero = jnp.zeros_like(made.scale)
    y_slope = spread(made.root) * (slope - made.y * spread(along))
    root_slope = -lax.square(made.root) * along
    return Standardized(y_slope, root_slope, zero, zero, zero)
