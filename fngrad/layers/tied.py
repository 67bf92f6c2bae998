"""Weights that stand once and are used twice."""

from typing import NamedTuple

import jax

from fngrad.layers.core import Layer, check_params, check_sizes, float_array_of
from fngrad.layers.initializers import Initializer, draw, normal
from fngrad.layers.layer_tree import by_position
from fngrad.layers.rematerialization import check_layer
from fngrad.types import Key, Params

_SMALL = normal(0.02)


class Tied(NamedTuple):
    """An entry of a combinator with the parameters of another one; see `tied`."""

    to: str | int
    layer: Layer


def tied(to: str | int, layer: Layer) -> Tied:
    r"""Return an entry of `serial` or `parallel` that has no parameters of its own.

    It is applied with those of another entry, which stand once among the parameters.
    Their gradient is the sum over both uses. `read_out` is for an embedding that gives
    the logits too, $y = E\, f(E_x)$:

    Args:
        to: the other entry: its name, or its index as in the path ``layers/0``.
        layer: takes parameters of the same paths and shapes.

    Raises:
        TypeError: if ``layer`` is not a layer without state.
        ValueError: from the combinator, if no other entry has this name or index.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers, fngrad.tree as tree
        >>> model = layers.serial(
        ...     tokens=layers.embedding(11, 8),
        ...     hidden=layers.linear(8, 8),
        ...     head=layers.tied("tokens", layers.read_out(11, 8)),
        ... )
        >>> params = model.init(jax.random.key(0))
        >>> list(tree.leaf_paths(params))
        ['hidden/bias', 'hidden/weight', 'tokens/weight']
        >>> jax.jit(model.apply)(params, jnp.array([3, 1, 4])).shape
        (3, 11)

    References:
        Press and Wolf 2017, "Using the output embedding to improve language models",
        https://arxiv.org/abs/1608.05859
    """
    check_layer(layer, "to tie")
    if not isinstance(layer, Layer):
        raise TypeError("need a layer without state to tie, got a StatefulLayer")
    return Tied(to, layer)


def read_out(
    vocab_size: int, features: int, *, weight_init: Initializer = _SMALL
) -> Layer:
    r"""Compare vectors with those of an embedding: $y = x E^\top$.

    Parameters: those of `fngrad.layers.embedding`, ``weight`` $E$ of shape
    ``(vocab_size, features)``. x has the shape ``(..., features)``, y ``(...,
    vocab_size)``.

    Args:
        vocab_size: number of tokens.
        features: size of a vector.
        weight_init: draws $E$ where it is not `tied`, by default ``normal(0.02)``.

    Raises:
        ValueError: if a size is below 1; at ``apply``, if x has another last axis or is
            not floating, or the table has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> table = {"weight": jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])}
        >>> print(layers.read_out(3, 2).apply(table, jnp.array([3.0, 4.0])))
        [3. 8. 7.]
    """
    check_sizes(vocab_size=vocab_size, features=features)
    shape = vocab_size, features

    def init(key: Key) -> Params:
        return {"weight": draw(weight_init, key, shape)}

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, {"weight": shape})
        weight = params["weight"]
        return float_array_of(x, features).astype(weight.dtype) @ weight.T

    return Layer(init, by_position(apply))
