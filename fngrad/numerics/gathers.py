"""Gathers whose gradients are summed in at least float32."""

from typing import Any

import jax
import jax.numpy as jnp


def rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    """Return ``table[indices]``; the gradient is summed in at least float32.

    The transpose of a gather adds up what indices that are equal give. In the dtype of
    a 16-bit table this sum would stop at 256 equal terms in bfloat16.

    Args:
        table: shape ``(n, ...)``.
        indices: int, in [0, n), any shape.
    """
    dtype = table.dtype
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return _narrow_rows(table, indices)
    return _rows(table, indices)


def _rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    return table.at[indices].get(mode="promise_in_bounds")


# A rule for tangents, not for cotangents: forward mode works too, and what is cast
# is the tangent of the table, which reverse mode only transposes.
_narrow_rows = jax.custom_jvp(_rows)


@_narrow_rows.defjvp
def _narrow_rows_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    table, indices = primals
    moved = _rows(tangents[0].astype(jnp.float32), indices).astype(table.dtype)
    return _narrow_rows(table, indices), moved
