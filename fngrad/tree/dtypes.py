"""The dtypes of leaves: arithmetic and memory in at least float32.

An *iterate* is a point that a rule keeps beside the parameters (where it began, a
second sequence, an average): at least float32, in memory of its own (`wide_copy`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from fngrad.tree.paths import leaf_paths
from fngrad.types import Params, Tree


def wide_dtype(dtype: Any) -> Any:
    """Return the dtype that moments and arithmetic use: at least float32.

    Integers stay as they are.
    """
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return jax.dtypes.canonicalize_dtype(dtype)


def widen(a: Tree) -> Tree:
    """Cast float leaves that are narrower than float32 to float32."""
    return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), a)


def wide_zeros_like(a: Tree) -> Tree:
    """Return the zeros that a moment of these parameters begins with."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=wide_dtype(x.dtype)), a)


def wide_copy(params: Params) -> Params:
    """Return a copy in at least float32; zeros where a leaf is only a shape."""

    def copy(p: jax.Array) -> jax.Array:
        dtype = wide_dtype(p.dtype)
        if isinstance(p, jax.ShapeDtypeStruct):
            return jnp.zeros(p.shape, dtype)
        return jnp.array(p, dtype, copy=True)

    return jax.tree.map(copy, params)


def cast_like(a: Tree, like: Tree) -> Tree:
    """Cast each leaf of a to the dtype of its partner in ``like``."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), a, like)


def strong(a: Tree) -> Tree:
    """Return arrays without weak types: with one a state would be traced anew."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), a)


def check_real(rule: str, params: Any) -> None:
    """Raise unless every leaf is real, for a rule that is not defined otherwise.

    Raises:
        TypeError: a complex leaf; the message has its path.
    """
    for path, leaf in leaf_paths(params).items():
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"need real parameters for {rule}, got {leaf.dtype} at {path!r}"
            )
