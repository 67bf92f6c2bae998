"""What rules that remember a point of parameter space have in common.

An *iterate* is a point that a rule keeps beside the parameters: where it began, a
second sequence, an average. It is at least float32 and never shares memory with the
parameters.
"""

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.types import Params


def wide_copy(params: Params) -> Params:
    """Return a copy in at least float32; zeros where a leaf is only a shape."""

    def copy(p: jax.Array) -> jax.Array:
        dtype = tree.wide_dtype(p.dtype)
        if isinstance(p, jax.ShapeDtypeStruct):
            return jnp.zeros(p.shape, dtype)
        return jnp.array(p, dtype, copy=True)

    return jax.tree.map(copy, params)


def difference(a: Params, b: Params) -> Params:
    """Return a - b, both widened."""
    return tree.sub(tree.widen(a), tree.widen(b))
