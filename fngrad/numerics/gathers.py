"""Gathers whose gradients are summed in at least float32."""

from typing import Any

import jax
import jax.numpy as jnp

from fngrad.numerics.precision import is_narrow


def rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    """Return ``table[indices]``; the gradient is summed in at least float32.

    The transpose of a gather sums over equal indices. In bfloat16 this sum would stop
    growing after 256 equal terms.

    Args:
        table: shape ``(n, ...)``.
        indices: int, in [0, n), any shape.
    """
    table = jnp.asarray(table)  # of NumPy, where parameters were read from a file
    gather = _narrow_rows if is_narrow(table.dtype) else _rows
    return gather(table, indices)


def _rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    return table.at[indices].get(mode="promise_in_bounds")


# A rule for tangents, not for cotangents, so that forward mode works too. Reverse mode
# transposes the cast of the table's tangent.
_narrow_rows = jax.custom_jvp(_rows)


@_narrow_rows.defjvp
def _narrow_rows_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    table, indices = primals
    moved = _rows(tangents[0].astype(jnp.float32), indices).astype(table.dtype)
    return _narrow_rows(table, indices), moved
