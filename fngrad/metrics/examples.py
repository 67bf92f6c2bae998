"""Which examples count, and how much."""

from typing import Any

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.metrics.accumulators import Mean
from fngrad.metrics.sums import pair_of_sum


def mask_and_weights(
    where: Any, weights: Any, shape: tuple[int, ...], dtype: Any
) -> tuple[jax.Array | None, jax.Array]:
    """Return what counts, or None for all, and the weights, 0 where it does not.

    An example of weight 0 does not count.

    Raises:
        TypeError: if the mask is not bool, or the weights are complex.
        ValueError: if the mask or the weights have another shape.
    """
    w = jnp.ones(shape, dtype) if weights is None else jnp.asarray(weights)
    if jnp.iscomplexobj(w):
        raise TypeError(f"need real weights, got dtype {w.dtype}")
    if w.shape != shape:
        raise ValueError(f"need weights of shape {shape}, got shape {w.shape}")
    w = w.astype(dtype)
    if where is None:
        return None if weights is None else w != 0, w
    mask = jnp.asarray(where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"need a mask of bools as where, got dtype {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"need where of shape {shape}, got shape {mask.shape}")
    return mask & (w != 0), jnp.where(mask, w, 0)


def wide(name: str, x: Any) -> jax.Array:
    """Return an array of floats in at least float32; integers and bools will do.

    Raises:
        TypeError: if the numbers are complex: their imaginary part would be lost.
    """
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        raise TypeError(f"need real {name}, got dtype {x.dtype}")
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return tree.widen(x) if is_float else x.astype(jnp.float32)


def mean_of(values: jax.Array, w: jax.Array) -> Mean:
    """Return the weighted mean of values."""
    total, weight = pair_of_sum(w * values), pair_of_sum(w)
    return Mean(total[0], weight[0], (total[1], weight[1]))
