"""The arithmetic of attention: products, a softmax with a mask, what a mask hides."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
from fngrad.layers.core import dense, with_narrow_residuals
from fngrad.numerics.precision import is_narrow
from fngrad.types import Params


def project(
    maps: Sequence[Params], x: jax.Array, is_masked: bool
) -> tuple[Sequence[jax.Array], jax.Array]:
    """Return maps of x to one size, and which positions are not finite before or after.

    With a mask these become 0: a weight of 0 times an infinity would be NaN, forward
    and backward. `_spoil` puts the NaN back where it belongs.
    """
    if not is_masked:
        return [dense(params, x) for params in maps], jnp.zeros(len(x), bool)
    x, is_bad = _clear(x)
    cleared = [_clear(dense(params, x)) for params in maps]
    images, are_bad = zip(*cleared, strict=True)
    is_bad_image = functools.reduce(jnp.logical_or, are_bad)
    return images, is_bad | is_bad_image


def _clear(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x with 0 in the rows that are not finite, and which rows these are."""
    is_bad = ~jnp.all(jnp.isfinite(x), axis=-1)
    return numerics.replaced(is_bad[:, None], x, 0), is_bad


def output_of(
    params: Params,
    heads: jax.Array,
    allowed: jax.Array | None,
    is_bad: jax.Array,
    is_over: jax.Array,
) -> jax.Array:
    """Return the map of the heads, NaN where a position may attend to a bad one."""
    if allowed is None:
        return dense(params, heads)
    is_over |= jnp.any(allowed & is_bad[None], axis=(0, 2))
    heads, is_bad_head = _clear(heads)
    return _spoil(dense(params, heads), is_over | is_bad_head)


def _spoil(y: jax.Array, is_bad: jax.Array) -> jax.Array:
    """Return y of shape (length, features), NaN at the bad positions.

    A gradient of 0 stays 0 at such a position; any other overflows, so that it shows
    as the value does.
    """
    is_bad = is_bad[:, None]
    # A product with NaN would make a gradient of 0 NaN.
    factor = jnp.where(is_bad, jnp.finfo(y.dtype).max, 1).astype(y.dtype)
    nan = lax.stop_gradient(jnp.where(is_bad, jnp.nan, 0).astype(y.dtype))
    return factor * (factor * y) + nan


def in_narrowest(*arrays: jax.Array) -> list[jax.Array]:
    """Return the arrays in the narrowest of their dtypes."""
    dtype = min((x.dtype for x in arrays), key=lambda d: jnp.finfo(d).bits)
    return [x.astype(dtype) for x in arrays]


def weights_of(
    q: jax.Array, k: jax.Array, allowed: jax.Array | None, biases: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Return (kv_heads, group, length, context_length) from q and k by head.

    With a mask, the weights of a position are 0 if one of its logits overflows, and the
    position is marked in the second result.

    Args:
        q: shape (length, kv_heads, group, head_size).
        k: shape (context_length, kv_heads, head_size).
        allowed: where attention may go, by head or with one for all.
        biases: added to the logits, by head.
    """

    def softmax(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = _logits(q, k)
        if biases is not None:
            logits += biases.reshape(logits.shape).astype(logits.dtype)
        weights, is_over = _softmax(logits, allowed)
        return weights.astype(q.dtype), is_over

    return with_narrow_residuals(softmax, q, k)


def _products(q: jax.Array, k: jax.Array, dtype: Any = None) -> jax.Array:
    return jnp.einsum("tkgd,skd->kgts", q, k, preferred_element_type=dtype)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    """Return the scaled products, in at least float32."""
    products = _wide_products if is_narrow(q.dtype) else _products
    return products(q, k) / math.sqrt(q.shape[-1])


@jax.custom_jvp
def _wide_products(q: jax.Array, k: jax.Array) -> jax.Array:
    return _products(q, k, jnp.float32)


@_wide_products.defjvp
def _wide_products_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Multiply narrow tangents: the transpose of a wide product has a wide operand."""
    (q, k), (dq, dk) = primals, tangents
    slope = _products(dq, k) + _products(q, dk)
    return _wide_products(q, k), slope.astype(jnp.float32)


def _softmax(
    logits: jax.Array, allowed: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    if allowed is None:
        return jax.nn.softmax(logits), jnp.zeros(logits.shape[2], bool)
    heads = logits.shape[0] * logits.shape[1]
    allowed = jnp.broadcast_to(allowed, (heads, *logits.shape[2:]))
    weights, is_over = _masked_softmax(logits, allowed.reshape(logits.shape))
    return weights, jnp.any(is_over, axis=(0, 1, 3))


@jax.custom_jvp
def _masked_softmax(
    logits: jax.Array, allowed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the softmax over what is allowed, and in which rows a logit overflows.

    Such a row is 0, as is one in which nothing is allowed.
    """
    weights = jax.nn.softmax(numerics.replaced(~allowed, logits, -jnp.inf))
    is_nan = jnp.isnan(weights[..., :1])  # the whole row or none of it
    is_over = is_nan & jnp.any(allowed, axis=-1, keepdims=True)
    return numerics.replaced(is_nan, weights, 0), is_over


@_masked_softmax.defjvp
def _masked_softmax_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Keep the weights alone: they are 0 where a logit is left out."""
    weights, is_over = _masked_softmax(*primals)
    slope = weights * tangents[0]
    slope -= weights * jnp.sum(slope, axis=-1, keepdims=True)
    no_slope = np.zeros(is_over.shape, jax.dtypes.float0)
    return (weights, is_over), (slope, no_slope)
