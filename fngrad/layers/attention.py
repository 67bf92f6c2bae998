"""Attention: each position takes a weighted mean of others."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
from fngrad.layers.core import (
    Layer,
    check_params,
    check_sizes,
    dense,
    drop,
    float_array_of,
    with_narrow_residuals,
)
from fngrad.layers.initializers import (
    GLOROT,
    ZEROS,
    Initializer,
    dense_params,
    dense_shapes,
)
from fngrad.numerics.precision import is_narrow
from fngrad.types import Key, Params, Path, Scalar


def multi_head_attention(
    features: int,
    num_heads: int,
    *,
    num_kv_heads: int | None = None,
    head_size: int | None = None,
    context_features: int | None = None,
    causal: bool = False,
    dropout_rate: Scalar | None = None,
    bias: bool = True,
    weight_init: Initializer = GLOROT,
    output_init: Initializer | None = None,
) -> Layer:
    r"""Attend from each position of x to the positions of a context, x by default.

    For each head, with $Q = x W_q$, $K = c W_k$, $V = c W_v$ and head size $d$,

    $$\text{softmax}(Q K^\top / \sqrt d)\, V,$$

    and the heads side by side go through $W_o$. The softmax is in at least float32.
    Where a mask leaves a position nothing to attend to, the weights are 0, not NaN.
    What a mask or causality hides from a position does not affect its y or the
    gradient, not even an infinity or a NaN; a position that may attend to one of these
    gives NaN.

    Parameters: ``query``, ``key``, ``value`` and ``output``, each with ``weight`` (and
    ``bias``), as in `fngrad.layers.linear`. ``apply(params, x, *, key=None,
    context=None, mask=None)`` takes x of shape ``(length, features)``, a context of
    shape ``(context_length, context_features)``, and a mask of bools, True where
    attention may go, of shape ``(length, context_length)`` or ``(num_heads, length,
    context_length)``.

    Args:
        features: last axis of x and y.
        num_heads: number of heads.
        num_kv_heads: number of heads of keys and values, a divisor of num_heads; the
            default is num_heads, 1 is multi-query attention.
        head_size: $d$; by default features / num_heads.
        context_features: last axis of the context; by default features.
        causal: position t attends to positions 0 to t only.
        dropout_rate: in [0, 1], of the attention weights, with a key; may be a tracer;
            None for no dropout.
        bias: whether the four maps have a bias, which begins at 0.
        weight_init: draws the weights of the four maps; by default `glorot_uniform`.
        output_init: draws $W_o$ instead.

    Raises:
        ValueError: if a size is below 1, num_heads does not divide features,
            num_kv_heads does not divide num_heads, or the rate is outside [0, 1]; at
            ``apply``, if shapes differ from those above, the mask is not bool, or
            causal attention gets a context.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.multi_head_attention(8, 2, causal=True)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones((5, 8))).shape
        (5, 8)

    References:
        Vaswani et al. 2017, "Attention is all you need", equation 1,
        https://arxiv.org/abs/1706.03762
        Ainslie et al. 2023, "GQA: training generalized multi-query transformer models
        from multi-head checkpoints", https://arxiv.org/abs/2305.13245
    """
    from_size = features if context_features is None else context_features
    check_sizes(features=features, num_heads=num_heads, context_features=from_size)
    numerics.check_number("dropout_rate", dropout_rate, 0.0, 1.0, optional=True)
    kv_heads = _kv_heads(num_heads, num_kv_heads)
    size = _head_size(features, num_heads, head_size)

    q_size, kv_size = num_heads * size, kv_heads * size
    maps = {
        "query": ((features, q_size), weight_init),
        "key": ((from_size, kv_size), weight_init),
        "value": ((from_size, kv_size), weight_init),
        "output": ((q_size, features), output_init or weight_init),
    }
    bias_init = ZEROS if bias else None
    shapes = _shapes(maps, bias)

    def apply(
        params: Params,
        x: jax.Array,
        *,
        key: Key | None = None,
        context: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        check_params(params, shapes)
        x = _sequence("x", x, features)
        source = x if context is None else _context(context, from_size, causal)
        allowed = _allowed(causal, mask, num_heads, len(x), len(source))
        (q,), is_bad_query = _project([params["query"]], x, allowed)
        of_source = [params["key"], params["value"]]
        (k, v), is_bad_source = _project(of_source, source, allowed)
        q, k, v = _in_narrowest(q, k, v)
        q = q.reshape(len(x), kv_heads, -1, size)
        k, v = (a.reshape(len(source), kv_heads, size) for a in (k, v))
        weights, is_over = _weights(q, k, allowed)
        if key is not None and dropout_rate is not None:
            weights = drop(dropout_rate, weights, key)
        heads = jnp.einsum("kgts,skd->tkgd", weights, v).reshape(len(x), -1)
        is_bad = is_bad_query[:, None] | is_bad_source[None, :]
        return _output(params["output"], heads, allowed, is_bad, is_over)

    return Layer(_init(maps, bias_init), apply)


def _shapes(
    maps: dict[str, tuple[tuple[int, int], Initializer]], bias: bool
) -> dict[Path, tuple[int, ...]]:
    shapes: dict[Path, tuple[int, ...]] = {}
    for name, (shape, _) in maps.items():
        shapes |= dense_shapes(shape, bias, name)
    return shapes


def _init(
    maps: dict[str, tuple[tuple[int, int], Initializer]], bias_init: Initializer | None
) -> Callable[[Key], Params]:
    def init(key: Key) -> Params:
        keys = jax.random.split(numerics.key(key), len(maps))
        return {
            name: dense_params(k, shape, weight_init, bias_init)
            for k, (name, (shape, weight_init)) in zip(keys, maps.items(), strict=True)
        }

    return init


def _project(
    maps: Sequence[Params], x: jax.Array, allowed: jax.Array | None
) -> tuple[Sequence[jax.Array], jax.Array]:
    """Return maps of x to one size, and which positions are not finite before or after.

    With a mask these become 0: a weight of 0 times an infinity would be NaN, forward
    and backward. `_spoil` puts the NaN back where it belongs.
    """
    if allowed is None:
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


def _output(
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


def _in_narrowest(*arrays: jax.Array) -> list[jax.Array]:
    dtype = min((x.dtype for x in arrays), key=lambda d: jnp.finfo(d).bits)
    return [x.astype(dtype) for x in arrays]


def _weights(
    q: jax.Array, k: jax.Array, allowed: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Return (kv_heads, group, length, context_length) from q and k by head.

    With a mask, the weights of a position are 0 if one of its logits overflows, and the
    position is marked in the second result.
    """

    def weights_of(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights, is_over = _softmax(_logits(q, k), allowed)
        return weights.astype(q.dtype), is_over

    return with_narrow_residuals(weights_of, q, k)


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


def _allowed(
    causal: bool, mask: jax.Array | None, heads: int, length: int, context_length: int
) -> jax.Array | None:
    past = jnp.tri(length, dtype=bool)[None] if causal else None
    if mask is None:
        return past
    mask = jnp.asarray(mask)
    shape = length, context_length
    if mask.dtype != jnp.bool_ or mask.shape not in (shape, (heads, *shape)):
        raise ValueError(
            f"need a mask of bools of shape {shape} or {(heads, *shape)}, "
            f"got {mask.dtype} of shape {mask.shape}"
        )
    mask = mask.reshape(-1, *shape)
    return mask if past is None else mask & past


def _sequence(name: str, x: jax.Array, features: int) -> jax.Array:
    if jnp.ndim(x) != 2 or jnp.shape(x)[-1] != features:
        raise ValueError(
            f"need {name} of shape (length, {features}), got shape {jnp.shape(x)}"
        )
    return float_array_of(x, features)


def _context(context: jax.Array, features: int, causal: bool) -> jax.Array:
    if causal:
        raise ValueError("need no context for causal attention, got one")
    return _sequence("context", context, features)


def _kv_heads(num_heads: int, num_kv_heads: int | None) -> int:
    if num_kv_heads is None:
        return num_heads
    check_sizes(num_kv_heads=num_kv_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            "need num_kv_heads that divides num_heads, "
            f"got {num_kv_heads=} {num_heads=}"
        )
    return num_kv_heads


def _head_size(features: int, num_heads: int, head_size: int | None) -> int:
    if head_size is not None:
        check_sizes(head_size=head_size)
        return head_size
    if features % num_heads:
        raise ValueError(
            f"need num_heads that divides features, got {num_heads=} {features=}; "
            "or give a head_size"
        )
    return features // num_heads
