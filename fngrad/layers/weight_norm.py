"""Weights as a length times a direction."""

from typing import Any, overload

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.core import Layer, StatefulLayer
from fngrad.layers.layer_tree import Parts, full_name, made_of
from fngrad.layers.one_program import plain
from fngrad.layers.rematerialization import check_layer
from fngrad.layers.selected_weights import check_matrix, selected_weights
from fngrad.types import Key, Params, Selector

_ENTRIES = {"direction", "scale"}


@overload
def weight_norm(inner: Layer, select: Selector = ...) -> Layer: ...
@overload
def weight_norm(inner: StatefulLayer, select: Selector = ...) -> StatefulLayer: ...
def weight_norm(
    inner: Layer | StatefulLayer, select: Selector = "**/weight"
) -> Layer | StatefulLayer:
    r"""Learn the length of each output's weights apart from their direction.

    $$W_{\cdot, o} = g_o\, \frac{v_{\cdot, o}}{\lVert v_{\cdot, o} \rVert}$$

    for each output $o$, the last axis of a weight; the norm is over the other axes. A
    new layer computes what ``inner`` does with the same key, since $v$ begins at its
    weight and $g$ at the norm. Where $v$ is 0 the weight is 0.

    Parameters: those of ``inner``, with ``weight/direction`` $v$, of the weight's
    shape, and ``weight/scale`` $g$, of shape ``(outputs,)``, for each selected weight.

    Args:
        inner: a layer. Layers in a loop are wrapped one by one:
            ``repeat(weight_norm(block), n)``.
        select: which leaves, all called ``weight`` by default; a glob over paths, or
            ``(path, leaf) -> bool``.

    Raises:
        TypeError: if ``inner`` is not a layer.
        ValueError: at ``init``, if no leaf is selected, or one with fewer than two
            axes; at ``apply``, from ``inner``, if the parameters are not its.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> import fngrad.tree as tree
        >>> layer = layers.weight_norm(layers.linear(3, 2))
        >>> params = layer.init(jax.random.key(0))
        >>> list(tree.leaf_paths(params))
        ['bias', 'weight/direction', 'weight/scale']
        >>> jax.jit(layer.apply)(params, jnp.ones(3)).shape
        (2,)

    References:
        Salimans and Kingma 2016, "Weight normalization", equation 2,
        https://arxiv.org/abs/1602.07868. Differs from it in: the first values are those
        of ``inner``, not taken from a batch. torch names them ``original1`` and
        ``original0``.
    """
    check_layer(inner, "for weight_norm")
    is_stateful = isinstance(inner, StatefulLayer)

    def init(key: Key) -> Any:
        made = plain(inner.init)(key)
        params, *rest = made if is_stateful else (made,)
        chosen = selected_weights(params, select)

        def apart(path: str, leaf: jax.Array) -> Any:
            if path not in chosen:
                return leaf
            check_matrix(path, leaf)
            return {"direction": leaf, "scale": _lengths(leaf).astype(leaf.dtype)}

        params = tree.map_with_path(apart, params)
        return (params, *rest) if is_stateful else params

    def apply(params: Params, *args: Any, **named: Any) -> Any:
        return inner.apply(_merged(params), *args, **named)

    made_of(apply, Parts(f"weight_norm({full_name(inner)})"))
    return type(inner)(init, apply)


def _lengths(weight: jax.Array) -> jax.Array:
    return numerics.norm(tree.widen(weight), axis=tuple(range(weight.ndim - 1)))


def _merged(params: Params) -> Params:
    """Return the parameters of the inner layer."""

    def is_pair(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == _ENTRIES

    def merge(node: Any) -> Any:
        return _weight(node["direction"], node["scale"]) if is_pair(node) else node

    return jax.tree.map(merge, params, is_leaf=is_pair)


def _weight(direction: jax.Array, scale: jax.Array) -> jax.Array:
    wide = tree.widen(direction)
    lengths = _lengths(direction).astype(wide.dtype)
    ratio = numerics.divide(scale.astype(wide.dtype), lengths)
    along = ratio.reshape((1,) * (direction.ndim - 1) + (-1,))
    return (wide * jnp.broadcast_to(along, wide.shape)).astype(direction.dtype)
