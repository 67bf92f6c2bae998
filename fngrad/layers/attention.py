"""Attention: each position takes a weighted mean of others."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.layers.alibi import alibi_biases
from fngrad.layers.attention_arithmetic import (
    in_narrowest,
    output_of,
    project,
    turned,
    weighted,
    weights_of,
)
from fngrad.layers.core import (
    Layer,
    StatefulLayer,
    check_params,
    check_sizes,
    drop,
    float_array_of,
)
from fngrad.layers.initializers import GLOROT, Initializer
from fngrad.layers.key_value_cache import (
    KeyValueCache,
    Sources,
    empty,
    extended,
    is_past_end,
)
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.layers.named_maps import init_of_maps, shapes_of_maps
from fngrad.layers.one_program import plain
from fngrad.programs.keywords_elsewhere import OF_LAYERS, explains_keywords
from fngrad.types import Key, Params, Scalar

# (x of shape (length, heads, head_size), positions of shape (length,)) -> such an x
Rotation = Callable[[jax.Array, jax.Array], jax.Array]


class _Heads(NamedTuple):
    """What the arguments of `multi_head_attention` say of its heads."""

    num_heads: int
    num_kv_heads: int
    size: int
    causal: bool
    window: int | None
    rotary: Rotation | None
    alibi: bool
    dropout_rate: Scalar | None

    @property
    def sees_positions(self) -> bool:
        """Whether the places of x and context in one sequence matter."""
        by_distance = self.window is not None or self.rotary is not None or self.alibi
        return self.causal or by_distance


class _Attended(NamedTuple):
    y: jax.Array
    weights: jax.Array  # shape (num_heads, length, context_length)
    cache: KeyValueCache | None


@explains_keywords(OF_LAYERS)
def multi_head_attention(
    features: int,
    num_heads: int,
    *,
    num_kv_heads: int | None = None,
    head_size: int | None = None,
    context_features: int | None = None,
    causal: bool = False,
    window: int | None = None,
    rotary: Rotation | None = None,
    alibi: bool = False,
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
    What a mask, a window or causality hides from a position does not affect its y or
    the gradient, not even an infinity or a NaN; a position that may attend to one of
    these gives NaN.

    Parameters: ``query``, ``key``, ``value`` and ``output``, each with ``weight`` (and
    ``bias``), as in `fngrad.layers.linear`. ``apply(params, x, *, key=None,
    context=None, mask=None)`` takes x of shape ``(length, features)``, a context of
    shape ``(context_length, context_features)``, and a mask of bools, True where
    attention may go, of shape ``(length, context_length)`` or ``(num_heads, length,
    context_length)``. `cached` applies it to one token after the other,
    `attention_weights` gives the softmax too.

    Args:
        features: last axis of x and y.
        num_heads: number of heads.
        num_kv_heads: number of heads of keys and values, a divisor of num_heads; the
            default is num_heads, 1 is multi-query attention.
        head_size: $d$; by default features / num_heads.
        context_features: last axis of the context; by default features.
        causal: position t attends to positions 0 to t only.
        window: position t attends to positions s with $|t - s|$ below it only; a
            causal one to the last ``window``, its own included. The products with
            others are computed, and left out.
        rotary: turns queries and keys by their positions: `rotary`, or another
            function of x of shape ``(length, heads, head_size)`` and positions.
        alibi: whether `alibi_biases` are added to the logits.
        dropout_rate: in [0, 1], of the attention weights, with a key; may be a tracer;
            None for no dropout.
        bias: whether the four maps have a bias, which begins at 0.
        weight_init: draws the weights of the four maps; by default `glorot_uniform`.
        output_init: draws $W_o$ instead.

    Raises:
        ValueError: if a size is below 1, num_heads does not divide features,
            num_kv_heads does not divide num_heads, or the rate is outside [0, 1]; at
            ``apply``, if shapes differ from those above, the mask is not bool, or
            attention that is causal, or has a window, rotary or alibi, gets a context.
        TypeError: if rotary is not a function.

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
        Beltagy, Peters and Cohan 2020, "Longformer: the long-document transformer",
        section 3.1, https://arxiv.org/abs/2004.05150, for the window
    """
    from_size = features if context_features is None else context_features
    check_sizes(features=features, num_heads=num_heads, context_features=from_size)
    numerics.check_number("dropout_rate", dropout_rate, 0.0, 1.0, optional=True)
    if window is not None:
        check_sizes(window=window)
    if rotary is not None and not callable(rotary):
        raise TypeError(
            "need rotary as a function of x and positions, such as layers.rotary(), "
            f"got {rotary!r}"
        )
    kv_heads = _kv_heads(num_heads, num_kv_heads)
    size = _head_size(features, num_heads, head_size)
    how = _Heads(num_heads, kv_heads, size, causal, window, rotary, alibi, dropout_rate)
    q_size, kv_size = num_heads * size, kv_heads * size
    maps = {
        "query": ((features, q_size), weight_init),
        "key": ((from_size, kv_size), weight_init),
        "value": ((from_size, kv_size), weight_init),
        "output": ((q_size, features), output_init or weight_init),
    }
    shapes = shapes_of_maps(maps, bias)

    def attend(
        params: Params, x: jax.Array, context: jax.Array | None = None, **rest: Any
    ) -> _Attended:
        check_params(params, shapes)
        x = _sequence("x", x, features)
        source = x if context is None else _context(context, from_size, how)
        return _attend(how, params, x, source, **rest)

    return _layer(init_of_maps(maps, bias), attend, how)


def _layer(init: Callable[[Key], Params], attend: Any, how: _Heads) -> Layer:
    """Return the layer of an attention, with its forms that keep more than y."""

    def apply(
        params: Params,
        x: jax.Array,
        *,
        key: Key | None = None,
        context: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        return attend(params, x, context, key=key, mask=mask).y

    def weighing(params: Params, _: Any, x: jax.Array, **inputs: Any) -> Any:
        attended = attend(params, x, **inputs)
        return attended.y, attended.weights

    def caching(params: Params, cache: Any, x: jax.Array, *, key: Key | None = None):
        attended = attend(params, x, key=key, cache=cache)
        return attended.y, attended.cache

    def cached(max_length: int, dtype: Any) -> StatefulLayer:
        if not how.causal:
            raise ValueError("need causal attention for a cache, got causal=False")
        shape = how.num_kv_heads, how.size
        cache = functools.partial(empty, max_length, how.window, shape)
        return StatefulLayer(lambda key: (plain(init)(key), cache(dtype)), caching)

    parts = Parts(
        "multi_head_attention",
        cached=cached,
        weighing=lambda: StatefulLayer(lambda key: (plain(init)(key), ()), weighing),
    )
    return Layer(init, made_of(apply, parts))


def _attend(
    how: _Heads,
    params: Params,
    x: jax.Array,
    source: jax.Array,
    *,
    key: Key | None = None,
    mask: jax.Array | None = None,
    cache: KeyValueCache | None = None,
) -> _Attended:
    is_masked = how.causal or how.window is not None or mask is not None
    (q,), is_bad_query = project([params["query"]], x, is_masked)
    of_source = [params["key"], params["value"]]
    (k, v), is_bad_source = project(of_source, source, is_masked)
    q, k, v = in_narrowest(q, k, v)
    q = q.reshape(len(x), how.num_heads, how.size)
    k, v = (a.reshape(len(source), how.num_kv_heads, how.size) for a in (k, v))
    first = 0 if cache is None else cache.step
    positions, places = (
        first + jnp.arange(len(a), dtype=jnp.int32) for a in (x, source)
    )
    if how.rotary is not None:
        q, is_bad_query = turned(how.rotary, q, positions, is_bad_query, is_masked)
        k, is_bad_source = turned(how.rotary, k, places, is_bad_source, is_masked)
    seen = Sources(k, v, places, is_bad_source)
    if cache is not None:
        is_bad_query |= is_past_end(cache, positions, how.window)
        seen, cache = extended(cache, seen, how.window)
    allowed = _allowed(how, mask, positions, seen.positions, cache is not None)
    biases = None
    if how.alibi:
        biases = alibi_biases(how.num_heads, positions, seen.positions)
    is_bad = is_bad_query[:, None] | seen.is_bad[None, :]
    softmax, has_none = weights_of(q, seen.keys, allowed, is_bad, biases)
    weights = softmax
    if how.dropout_rate is not None:
        weights = drop("attention dropout", how.dropout_rate, softmax, key)
    heads = weighted(weights, seen.values, len(x))
    y = output_of(params["output"], heads, None if allowed is None else has_none)
    return _Attended(y, softmax.reshape(how.num_heads, len(x), -1), cache)


def _allowed(
    how: _Heads,
    mask: jax.Array | None,
    positions: jax.Array,
    places: jax.Array,
    is_cached: bool,
) -> jax.Array | None:
    """Return where attention may go, by head or with one for all; None everywhere."""
    shape = len(positions), len(places)
    distances = positions[:, None] - places[None, :]
    limits = [] if mask is None else [_mask(mask, how.num_heads, shape)]
    if how.causal:
        limits.append((distances >= 0)[None])
    if how.window is not None:
        limits.append((jnp.abs(distances) < how.window)[None])
    if is_cached:
        limits.append((places >= 0)[None, None])
    return functools.reduce(jnp.logical_and, limits) if limits else None


def _mask(mask: jax.Array, heads: int, shape: tuple[int, int]) -> jax.Array:
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_ or mask.shape not in (shape, (heads, *shape)):
        raise ValueError(
            f"need a mask of bools of shape {shape} or {(heads, *shape)}, "
            f"got {mask.dtype} of shape {mask.shape}"
        )
    return mask.reshape(-1, *shape)


def _sequence(name: str, x: jax.Array, features: int) -> jax.Array:
    if jnp.ndim(x) != 2 or jnp.shape(x)[-1] != features:
        raise ValueError(
            f"need {name} of shape (length, {features}), got shape {jnp.shape(x)}"
        )
    return float_array_of(x, features)


def _context(context: jax.Array, features: int, how: _Heads) -> jax.Array:
    if how.sees_positions:
        raise ValueError(
            "need no context for causal attention, nor with a window, rotary or alibi, "
            "got one"
        )
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
