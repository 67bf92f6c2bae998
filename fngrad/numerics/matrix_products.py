r"""Matrix products in full precision, also along one axis of an array.

Along an axis of size n an array G unfolds into a matrix $G_{(i)}$ of n rows; its
*Gram matrix* is $G_{(i)} G_{(i)}^\top$, of shape (n, n). For a matrix these are
$G G^\top$ and $G^\top G$. Products have float32 precision, also on devices whose
default precision is lower.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

# The state of a leaf for each of its axes, None for an axis without.
Axes: TypeAlias = tuple[Any, ...]


def gram(g: jax.Array, axis: int) -> jax.Array:
    """Return the Gram matrix along an axis."""
    rows = jnp.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return matmul(rows, rows.T)


def diagonal(g: jax.Array, axis: int) -> jax.Array:
    """Return the diagonal of the Gram matrix along an axis."""
    return jnp.sum(g * g, axis=tuple(i for i in range(g.ndim) if i != axis))


def along(matrix: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Multiply x by a matrix along an axis, from the left."""
    product = jnp.tensordot(matrix, x, (1, axis), precision="highest")
    return jnp.moveaxis(product, 0, axis)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a @ b in full precision."""
    return jnp.matmul(a, b, precision="highest")
