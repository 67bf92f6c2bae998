"""Models of sequences, applied to a few tokens after those that a cache holds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.layers.layer_tree as layer_tree
import fngrad.tree as tree
from fngrad.layers.core import Layer, StatefulLayer, check_sizes
from fngrad.layers.layer_tree import Parts
from fngrad.layers.rematerialization import check_layer
from fngrad.types import ModelState


def cached(layer: Layer) -> Callable[..., tuple[Any, ModelState]]:
    """Return the ``apply`` of a model of sequences that goes on where a cache ends.

    The outputs for a sequence are those of ``layer.apply``, however it is cut into
    calls: many tokens at once, such as a prompt, or one. The cache holds the keys and
    values of causal attention for each position, or for the last ``window`` ones, and
    the number of positions, which `rotary`, `alibi_biases` and `positional_embedding`
    take.

    Args:
        layer: `multi_head_attention` with ``causal=True``, `positional_embedding`, and
            what treats each position by itself, such as `linear`, `embedding`,
            `layer_norm`, `rms_norm` and `swiglu`, also in `serial`, `parallel`,
            `residual`, `repeat` and `remat`; so `fngrad.models.decoder` and
            `fngrad.models.transformer`. A function of x must treat each position by
            itself too.

    Returns:
        ``apply(params, cache, x, *, key=None) -> (y, cache)``, pure; x are the next
        positions. Beyond the ``max_length`` of the cache y is NaN, unless all attention
        has a window of at most this length and there are no learned positions.

    Raises:
        TypeError: if ``layer`` is not a layer, or holds another layer than those above,
            or attention that is `tied`.
        ValueError: if attention is not causal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers, fngrad.models as models
        >>> model = models.decoder(11, features=8, num_heads=2, num_layers=2)
        >>> params = model.init(jax.random.key(0))
        >>> step = jax.jit(layers.cached(model))
        >>> tokens = jnp.array([3, 1, 4, 1, 5])
        >>> cache = layers.init_cache(model, max_length=5)
        >>> first, cache = step(params, cache, tokens[:4])
        >>> last, cache = step(params, cache, tokens[4:])
        >>> whole = model.apply(params, tokens)
        >>> jnp.allclose(jnp.concatenate([first, last]), whole, atol=1e-5).item()
        True

    References:
        Shazeer 2019, "Fast transformer decoding: one write-head is all you need",
        section 2.4, https://arxiv.org/abs/1911.02150; Jiang et al. 2023, "Mistral 7B",
        section 2, https://arxiv.org/abs/2310.06825, for the cache of a window.
    """
    return _caching(layer, 1, None).apply


def init_cache(
    layer: Layer, max_length: int, *, start: int | jax.Array = 0, dtype: Any = None
) -> ModelState:
    """Return the cache of a model that has seen nothing, for `cached`.

    Args:
        layer: as for `cached`.
        max_length: number of positions that fit in. Attention with a shorter window
            holds the window alone.
        start: position of the first token; may be a tracer. Below 0 the first
            ``-start`` tokens are padding: no position attends to them, and their
            outputs are meaningless.
        dtype: of keys and values, by default the default float dtype. The parameters'
            dtype takes less memory for parameters in 16 bits, with the same outputs.

    Raises:
        TypeError: as in `cached`.
        ValueError: if max_length is below 1, or above that of a
            `positional_embedding`, the dtype is not a float's, or attention is not
            causal.

    Example:
        >>> import fngrad.layers as layers
        >>> layer = layers.multi_head_attention(8, 2, num_kv_heads=1, causal=True)
        >>> layers.init_cache(layer, 16).keys.shape
        (16, 1, 4)
    """
    check_sizes(max_length=max_length)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"need a float dtype for keys and values, got {dtype!r}")
    _, state = layer_tree.abstract_init(_caching(layer, max_length, dtype))

    def first(path: str, leaf: Any) -> jax.Array:
        is_step = path.rpartition("/")[2] == "step"
        return jnp.full(leaf.shape, start if is_step else 0, leaf.dtype)

    return tree.map_with_path(first, state)


def _caching(layer: Layer, max_length: int, dtype: Any) -> StatefulLayer:
    def change(inner: Any, parts: Parts) -> Any:
        if parts.cached is not None:
            return parts.cached(max_length, dtype)
        is_function = not isinstance(inner, Layer | StatefulLayer)
        if not is_function and not parts.by_position:
            raise TypeError(
                "need causal attention and layers that treat each position by itself "
                f"for a cache, got {layer_tree.full_name(inner)}"
            )
        return inner

    check_layer(layer, "for a cache")
    made = layer_tree.changed(layer, change)
    if isinstance(made, StatefulLayer):
        return made
    raise TypeError(
        f"need a layer with attention for a cache, got {layer_tree.full_name(layer)}"
    )
