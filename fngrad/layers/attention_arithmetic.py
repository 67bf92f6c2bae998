"""The arithmetic of attention: products, a softmax with a mask, what a mask hides."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
import fngrad.programs.reasons_of_nans as reasons_of_nans
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
    finite_x = numerics.replaced(_is_not_finite(x), x, 0)
    images = [dense(params, finite_x) for params in maps]
    # Apart: beside the images XLA would split the features of x as it splits theirs.
    is_bad = _is_bad(x) | _is_bad(*images)
    return [_clear(is_bad, y) for y in images], is_bad


def turned(
    rotate: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    positions: jax.Array,
    is_bad: jax.Array,
    is_masked: bool,
) -> tuple[jax.Array, jax.Array]:
    """Return x turned by its positions, and which are bad now: a sum may overflow.

    With a mask these become 0, see `project`.

    Args:
        rotate: maps x of shape (length, heads, head_size) and positions.
        x: finite with a mask.
        positions: int32, shape (length,).
        is_bad: which positions are bad already.
        is_masked: whether there is a mask.
    """
    y = rotate(x, positions)
    if not is_masked:
        return y, is_bad
    rows = y.reshape(len(y), -1)
    overflows = _is_bad(rows)
    return _clear(overflows, rows).reshape(y.shape), is_bad | overflows


def _is_bad(*arrays: jax.Array) -> jax.Array:
    """Return in which rows any of the arrays is not finite."""
    by_width: dict[int, jax.Array] = {}
    for x in arrays:
        is_bad, width = _is_not_finite(x), x.shape[-1]
        if width in by_width:
            is_bad = lax.bitwise_or(by_width[width], is_bad)
        by_width[width] = is_bad
    return functools.reduce(jnp.add, map(_count, by_width.values())) > 0


def _count(condition: jax.Array) -> jax.Array:
    """Return how often a condition holds in each row.

    XLA on CPU calls a library for sums of floats, and generates code for each `any`.
    """
    return jnp.sum(condition.astype(jnp.float32), axis=-1)


def _is_not_finite(x: jax.Array) -> jax.Array:
    return lax.bitwise_not(lax.is_finite(x))


def _clear(is_bad: jax.Array, x: jax.Array) -> jax.Array:
    """Return x with 0 in the bad rows."""
    return numerics.replaced(is_bad[:, None], x, 0)


def output_of(
    params: Params, heads: jax.Array, has_no_weights: jax.Array | None
) -> jax.Array:
    """Return the map of the heads, NaN in the rows that have no weights.

    Args:
        params: of the map.
        heads: shape (length, heads * head_size).
        has_no_weights: the second result of `weights_of`; None without a mask.
    """
    if has_no_weights is None:
        return dense(params, heads)
    is_bad = _is_bad(heads)
    # Rows without weights are 0 already; their gradient overflows, and passes on.
    y = dense(params, _clear(is_bad, heads))
    return _spoil(y, has_no_weights | is_bad)


def _spoil(y: jax.Array, is_bad: jax.Array) -> jax.Array:
    """Return y of shape (length, features), NaN at the bad positions.

    A gradient of 0 stays 0 at such a position; any other overflows, so that it shows
    as the value does.
    """
    is_bad = is_bad[:, None]
    # A product with NaN would make a gradient of 0 NaN.
    factor = jnp.where(is_bad, jnp.finfo(y.dtype).max, 1).astype(y.dtype)
    with jax.named_scope(reasons_of_nans.ATTENTION):
        nan = lax.stop_gradient(jnp.where(is_bad, jnp.nan, 0).astype(y.dtype))
    return factor * (factor * y) + nan


def in_narrowest(*arrays: jax.Array) -> list[jax.Array]:
    """Return the arrays in the narrowest of their dtypes."""
    dtype = min((x.dtype for x in arrays), key=lambda d: jnp.finfo(d).bits)
    return [x.astype(dtype) for x in arrays]


def weights_of(
    q: jax.Array,
    k: jax.Array,
    allowed: jax.Array | None,
    is_bad: jax.Array,
    biases: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the softmax, and which positions have none although they may attend.

    The softmax has a row per head and position, of shape (kv_heads, group * length,
    context_length). With a mask a row is 0 if it may attend to a bad place, or if a
    logit overflows, and the position is marked in the second result.

    Args:
        q: shape (length, heads, head_size).
        k: shape (context_length, kv_heads, head_size).
        allowed: where attention may go, by head or with one for all.
        is_bad: shape (length, context_length), True where q or k is not to be used.
        biases: added to the logits, by head.
    """

    def softmax(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = _logits(q, k)
        if biases is not None:
            logits += biases.reshape(logits.shape).astype(logits.dtype)
        if allowed is None:
            return jax.nn.softmax(logits).astype(q.dtype), jnp.zeros(len(q), bool)
        masks = (
            jnp.broadcast_to(mask, (q.shape[1], *mask.shape[-2:])).reshape(logits.shape)
            for mask in (allowed, is_bad)
        )
        weights, has_none = _masked_softmax(logits, *masks)
        return weights.astype(q.dtype), jnp.any(has_none.reshape(-1, len(q)), axis=0)

    return with_narrow_residuals(softmax, q, k)


def weighted(weights: jax.Array, v: jax.Array, length: int) -> jax.Array:
    """Return the sums of v with the weights of `weights_of`, the heads side by side.

    Args:
        weights: shape (kv_heads, group * length, context_length).
        v: shape (context_length, kv_heads, head_size).
        length: number of positions.
    """
    sums = jnp.einsum("krs,skd->krd", weights, v)
    by_head = sums.reshape(-1, length, v.shape[-1])
    return by_head.swapaxes(0, 1).reshape(length, -1)


def _products(q: jax.Array, k: jax.Array, dtype: Any = None) -> jax.Array:
    rows = q.swapaxes(0, 1).reshape(k.shape[1], -1, k.shape[2])
    return jnp.einsum("krd,skd->krs", rows, k, preferred_element_type=dtype)


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


@jax.custom_jvp
def _masked_softmax(
    logits: jax.Array, allowed: jax.Array, is_bad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the softmax over what is allowed, and which rows have a bad logit there.

    Such a row is 0, as is one in which nothing is allowed. A logit that overflows is
    bad too.
    """
    logits = numerics.replaced(is_bad, logits, jnp.nan)
    weights = jax.nn.softmax(numerics.replaced(~allowed, logits, -jnp.inf))
    is_nan = jnp.isnan(weights[..., :1])  # the whole row or none of it
    has_none = is_nan & (_count(allowed)[..., None] > 0)
    return numerics.replaced(is_nan, weights, 0), has_none


@_masked_softmax.defjvp
def _masked_softmax_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Keep the weights alone: they are 0 where a logit is left out."""
    weights, has_none = _masked_softmax(*primals)
    slope = weights * tangents[0]
    slope -= weights * jnp.sum(slope, axis=-1, keepdims=True)
    no_slope = np.zeros(has_none.shape, jax.dtypes.float0)
    return (weights, has_none), (slope, no_slope)
