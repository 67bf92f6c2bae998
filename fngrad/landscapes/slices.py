r"""Slices of a loss along lines and planes through the parameters of a network.

Random directions are comparable only if they have the norms of the weights, filter by
filter, since a network of rectified units is unchanged if one layer is scaled up and
the next down. A trajectory is best shown in the plane of its first two principal
directions: in a random plane it hardly moves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.matrix_products import matmul
from fngrad.types import Key, Params


class Plane(NamedTuple):
    """A plane w = origin + a u + b v through the parameters."""

    origin: Params
    u: Params
    v: Params


class Trajectory(NamedTuple):
    """A path of parameters in the plane of its principal directions."""

    plane: Plane  # through the last point; u, v orthogonal, of norm one (or zero)
    coordinates: jax.Array  # (a, b) of every point, shape (points, 2)
    explained: jax.Array  # share of the variance along u and v, shape (2,)


def filter_direction(params: Params, key: int | Key) -> Params:
    r"""Return a random direction with the norms of the weights, filter by filter.

    $$d_{ij} \leftarrow \frac{d_{ij}}{\|d_{ij}\|}\,\|w_{ij}\|$$

    for filter j (the weights of one output, an index of the last axis) of array i.
    Arrays of fewer than two axes, such as biases, get a direction of zero.

    References:
        Li et al., Visualizing the loss landscape of neural nets, 2018, section 4,
        https://arxiv.org/abs/1712.09913.
    """
    numbers = {path: i for i, path in enumerate(tree.leaf_paths(params))}
    key = numerics.key(key)

    def draw(path: str, w: jax.Array) -> jax.Array:
        if w.ndim < 2:
            return jnp.zeros_like(w)
        d = jax.random.normal(jax.random.fold_in(key, numbers[path]), w.shape, w.dtype)
        return numerics.divide(d, _filter_norms(d)) * _filter_norms(w)

    return tree.map_with_path(draw, params)


def random_plane(params: Params, key: int | Key) -> Plane:
    """Return the plane of two filter-normalized random directions through params."""
    k_u, k_v = jax.random.split(numerics.key(key))
    return Plane(params, filter_direction(params, k_u), filter_direction(params, k_v))


def line_values(
    f: Callable[..., Any], params: Params, direction: Params, a: jax.Array, *args: Any
) -> jax.Array:
    """Return f(params + a direction, *args) for every a, shape (points,).

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.landscapes import line_values
        >>> w, d = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
        >>> print(line_values(lambda w: jnp.sum(w**2), w, d, jnp.array([0.0, 1.0])))
        [1. 5.]
    """
    return jax.lax.map(lambda t: f(_along(params, (t, direction)), *args), a)


def plane_values(
    f: Callable[..., Any], plane: Plane, a: jax.Array, b: jax.Array, *args: Any
) -> jax.Array:
    """Return f at origin + a u + b v for every pair, shape (len(b), len(a)).

    Rows correspond to b, as in images and in ``contour(a, b, values)``.
    """

    def at(s: jax.Array, t: jax.Array) -> jax.Array:
        return f(_along(plane.origin, (s, plane.u), (t, plane.v)), *args)

    return jax.lax.map(lambda t: jax.lax.map(lambda s: at(s, t), a), b)


def principal_plane(visited: Params) -> Trajectory:
    """Return the plane of the first two principal directions of a path of parameters.

    Args:
        visited: parameters stacked along a first axis, shape (points, ...) each, at
            least three points. The plane passes through the last.

    Raises:
        ValueError: if there are fewer than three points.
    """
    points = jax.tree.leaves(visited)[0].shape[0]
    if points < 3:
        raise ValueError(f"need at least three points for a plane, got {points}")
    last = jax.tree.map(lambda x: x[-1], visited)
    _, restore = ravel_pytree(last)
    rows = jax.vmap(lambda w: ravel_pytree(w)[0])(visited)
    gaps = rows - rows[-1:]
    centered = gaps - jnp.mean(gaps, axis=0, keepdims=True)
    # Rows are few and long: the principal directions follow from the small Gram matrix.
    variances, weights = jnp.linalg.eigh(matmul(centered, centered.T))
    first, second = matmul(weights[:, :-3:-1].T, centered)
    first = _unit(first)
    # On a straight path the second is a rounding error, mostly along the first.
    for _ in range(2):
        second = _unit(second)
        second = second - jnp.vdot(first, second, precision="highest") * first
    directions = jnp.stack([first, _unit(second)])
    total = jnp.sum(jnp.maximum(variances, 0))
    explained = numerics.divide(jnp.maximum(variances[:-3:-1], 0), total)
    u, v = (restore(direction) for direction in directions)
    return Trajectory(Plane(last, u, v), matmul(gaps, directions.T), explained)


def _along(origin: Params, *terms: tuple[jax.Array, Params]) -> Params:
    for factor, direction in terms:
        origin = tree.add(origin, tree.scale(factor, direction))
    return origin


def _unit(x: jax.Array) -> jax.Array:
    return numerics.divide(x, jnp.broadcast_to(tree.norm(x), x.shape))


def _filter_norms(w: jax.Array) -> jax.Array:
    """Return the norm of each index of the last axis, broadcast to the shape of w."""
    norms = numerics.norm(tree.widen(w), tuple(range(w.ndim - 1)), keepdims=True)
    return jnp.broadcast_to(norms, w.shape).astype(w.dtype)
