"""Tables of vectors: one for each token, one for each position."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.layers.initializers as initializers
import fngrad.programs.reasons_of_nans as reasons_of_nans
from fngrad.layers.core import (
    Layer,
    StatefulLayer,
    add_shared,
    check_params,
    check_sizes,
    float_array,
    float_array_of,
)
from fngrad.layers.initializers import Initializer, draw
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.layers.low_rank_adapters import rows
from fngrad.layers.one_program import plain
from fngrad.programs.keywords_elsewhere import OF_LAYERS, explains_keywords
from fngrad.types import Key, Params


class NextPosition(NamedTuple):
    """What `cached` positional embeddings keep from call to call."""

    step: jax.Array  # int32, shape ()


_SMALL = initializers.normal(0.02)


@explains_keywords(OF_LAYERS)
def embedding(
    vocab_size: int,
    features: int,
    *,
    weight_init: Initializer = _SMALL,
) -> Layer:
    """Look up a vector for each token.

    Parameters: ``weight`` of shape ``(vocab_size, features)``. x holds token numbers,
    int, of any shape; y has the shape ``(*x.shape, features)``. A token outside
    [0, vocab_size) gives NaN, even a negative one: a compiled program cannot raise,
    and a NaN shows.

    Args:
        vocab_size: number of tokens.
        features: size of a vector.
        weight_init: draws the vectors, by default ``normal(0.02)``.

    Raises:
        ValueError: if a size is below 1; at ``apply``, if x does not hold ints, or the
            table has another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.embedding(10, 4)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.array([3, 1, 4])).shape
        (3, 4)
    """
    check_sizes(vocab_size=vocab_size, features=features)

    def init(key: Key) -> Params:
        return {"weight": draw(weight_init, key, (vocab_size, features))}

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, {"weight": (vocab_size, features)})
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"need tokens with an int dtype, got {x.dtype}")
        # The bound has the dtype of x, which may be too narrow for vocab_size.
        last = min(vocab_size - 1, int(jnp.iinfo(x.dtype).max))
        is_known = (x >= 0) & (x <= last)
        tokens = jnp.where(is_known, x, 0).astype(jnp.int32)
        found = rows(params["weight"], tokens)
        with jax.named_scope(reasons_of_nans.TOKEN):
            return jnp.where(is_known[..., None], found, jnp.nan)

    parts = Parts("embedding", by_position=True, tokens=vocab_size)
    return Layer(init, made_of(apply, parts))


def positional_embedding(
    max_length: int,
    features: int,
    *,
    weight_init: Initializer = _SMALL,
) -> Layer:
    """Add a learned vector for each position of a sequence.

    Parameters: ``weight`` of shape ``(max_length, features)``. x has the shape
    ``(length, features)`` with length <= max_length.

    Args:
        max_length: the longest sequence.
        features: the last axis of x.
        weight_init: draws the vectors, by default ``normal(0.02)``.

    Raises:
        ValueError: if a size is below 1; at ``apply``, if x has another shape, is
            longer than max_length, or is not floating, or the table has another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.positional_embedding(8, 4)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones((5, 4))).shape
        (5, 4)
    """
    check_sizes(max_length=max_length, features=features)

    def init(key: Key) -> Params:
        return {"weight": draw(weight_init, key, (max_length, features))}

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, {"weight": (max_length, features)})
        x = float_array(x)
        if x.ndim != 2 or x.shape[0] > max_length or x.shape[1] != features:
            raise ValueError(
                f"need x of shape (length <= {max_length}, {features}), "
                f"got shape {x.shape}"
            )
        return add_shared(x, params["weight"][: x.shape[0]])

    def caching(
        params: Params, cache: NextPosition, x: jax.Array, *, key: Key | None = None
    ) -> tuple[jax.Array, NextPosition]:
        check_params(params, {"weight": (max_length, features)})
        x = float_array_of(x, features)
        positions = cache.step + jnp.arange(len(x), dtype=jnp.int32)
        found = rows(params["weight"], jnp.clip(positions, 0, max_length - 1))
        found = jnp.where((positions < max_length)[:, None], found, jnp.nan)
        return add_shared(x, found), NextPosition(cache.step + len(x))

    def cached(length: int, dtype: Any) -> StatefulLayer:
        if length > max_length:
            raise ValueError(
                f"need a cache of at most max_length={max_length} positions, "
                f"got {length}"
            )
        at_first = NextPosition(jnp.zeros((), jnp.int32))
        return StatefulLayer(lambda key: (plain(init)(key), at_first), caching)

    parts = Parts("positional_embedding", cached=cached)
    return Layer(init, made_of(apply, parts))
