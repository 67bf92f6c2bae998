"""What the positions of a model attend to."""

from collections.abc import Callable
from typing import Any

import jax

import fngrad.layers.layer_tree as layer_tree
from fngrad.layers.core import Layer, StatefulLayer
from fngrad.layers.layer_tree import Parts
from fngrad.layers.rematerialization import check_layer
from fngrad.types import Key, Params


def attention_weights(layer: Layer) -> Callable[..., tuple[Any, Any]]:
    """Return the ``apply`` of a model that gives the weights of its attention too.

    Args:
        layer: holds `multi_head_attention`, itself or in `serial`, `parallel`,
            `residual`, `repeat` and `remat`.

    Returns:
        ``apply(params, x, *, key=None, **inputs) -> (y, weights)`` with the y of
        ``layer.apply``. The weights are a tree with one leaf at the path of each
        attention's parameters: its softmax, before dropout, of shape ``(num_heads,
        length, context_length)``, which sums to 1 over the last axis, or is 0 where a
        mask leaves nothing to attend to, or something that is not finite; with
        `repeat` stacked along a first axis.

    Raises:
        TypeError: if ``layer`` is not a layer without state, or its attention is
            `tied`.
        ValueError: if it holds no attention.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers, fngrad.models as models, fngrad.tree as tree
        >>> model = models.transformer(11, 8, features=8, num_heads=2, num_layers=1)
        >>> params = model.init(jax.random.key(0))
        >>> look = jax.jit(layers.attention_weights(model))
        >>> logits, weights = look(params, jnp.array([3, 1, 4]))
        >>> {path: w.shape for path, w in tree.leaf_paths(weights).items()}
        {'blocks/layers/0/attention/attend': (2, 3, 3)}
    """

    def change(inner: Any, parts: Parts) -> Any:
        return inner if parts.weighing is None else parts.weighing()

    check_layer(layer, "with attention")
    if isinstance(layer, StatefulLayer):
        raise TypeError("need a layer without state for its attention's weights")
    weighing = layer_tree.changed(layer, change)
    if not isinstance(weighing, StatefulLayer):
        name = layer_tree.full_name(layer)
        raise ValueError(f"need a layer with attention, got {name}")

    def apply(
        params: Params, x: jax.Array, *, key: Key | None = None, **inputs: Any
    ) -> tuple[Any, Any]:
        _, nothing = layer_tree.abstract_init(weighing)
        return weighing.apply(params, nothing, x, key=key, **inputs)

    return apply
