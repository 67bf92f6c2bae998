"""Directional derivatives (slopes) and their rounding errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.types import Key, Params

STEPS = tuple(10.0**-k for k in np.arange(1.0, 8.0, 0.5))
NOISE = 64 * float(np.finfo(np.float64).eps)  # relative rounding error of one value


def scalar_of(f: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Return f, less its auxiliary outputs, as a function to a float64 scalar.

    Raises:
        TypeError: when called, if f does not return a real scalar.
    """

    def value(*args: Any) -> jax.Array:
        out = f(*args)
        loss = jnp.asarray(out[0] if isinstance(out, tuple) else out)
        if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(
                f"need f to return a real scalar, got shape {loss.shape} and dtype "
                f"{loss.dtype}"
            )
        return jnp.asarray(loss, jnp.float64)

    return value


def values_along(value: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return (w, v, constants) -> f(w + h v) and f(w - h v) for each h of STEPS."""

    @jax.jit
    def along(w: Params, v: Params, constants: Any) -> jax.Array:
        def at(h: jax.Array) -> jax.Array:
            moved = jax.tree.map(lambda x, d: x + h.astype(x.dtype) * d, w, v)
            return value(moved, *constants)

        h = jnp.array(STEPS)
        return jax.lax.map(at, jnp.stack([h, -h], axis=1).reshape(-1)).reshape(-1, 2)

    return along


def random_direction(w: Params, path: str | None, key: Key) -> Params:
    """Return a random direction in one leaf (None: all), with the norm of the leaf."""

    def draw(here: str, x: jax.Array) -> jax.Array:
        if path is not None and here != path:
            return jnp.zeros_like(x)
        number = list(tree.leaf_paths(w)).index(here)
        v = jax.random.normal(jax.random.fold_in(key, number), x.shape, x.dtype)
        length, norm = tree.norm(x), tree.norm(v)
        length = jnp.where(length == 0, 1.0, length)
        return numerics.scaled(numerics.divide(length, norm), v)

    return tree.map_with_path(draw, w)


def slope_along(gradient: Params, v: Params) -> float:
    """Return the slope along v; JAX's complex gradients are not conjugated.

    Entries where v is zero do not count, even if their gradient is NaN.
    """
    return float(_slope(gradient, v))


@jax.jit  # one program instead of four for each shape of a leaf
def _slope(gradient: Params, v: Params) -> jax.Array:
    def term(g: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(d == 0, 0, jnp.real(g * d)))

    return jnp.asarray(sum(jax.tree.leaves(jax.tree.map(term, gradient, v))))


def observed_order(
    h: np.ndarray, errors: np.ndarray, noise: float | np.ndarray
) -> float:
    """Return the median order of convergence where errors far exceed rounding."""
    clear = errors > 100 * noise
    both = clear[:-1] & clear[1:]
    if not np.any(both):
        return float("nan")
    ratios = np.log(errors[:-1][both] / errors[1:][both])
    return float(np.median(ratios / np.log(h[:-1][both] / h[1:][both])))


def check_finite(value: float, what: str = "f") -> None:
    """Check that f, or its slope, is finite.

    Raises:
        ValueError: if it is not.
    """
    if not np.isfinite(value):
        raise ValueError(f"need a finite {what} at the parameters, got {value}")


def name_of(path: str) -> str:
    """Return a leaf's path for messages."""
    return path or "(root)"
