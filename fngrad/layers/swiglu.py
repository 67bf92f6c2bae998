"""The gated feed-forward layer of language models."""

from collections.abc import Callable

import jax

from fngrad.layers.core import Layer, check_params, check_sizes, dense, float_array_of
from fngrad.layers.initializers import GLOROT, Initializer
from fngrad.layers.layer_tree import by_position
from fngrad.layers.named_maps import init_of_maps, shapes_of_maps
from fngrad.programs.keywords_elsewhere import OF_LAYERS, explains_keywords
from fngrad.types import Key, Params


@explains_keywords(OF_LAYERS)
def swiglu(
    features: int,
    hidden_size: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
    bias: bool = False,
    weight_init: Initializer = GLOROT,
    output_init: Initializer | None = None,
) -> Layer:
    r"""Multiply a layer's units by gates: $y = (\sigma(x W_g) \odot x W_1)\, W_2$.

    Parameters: ``gate`` $W_g$, ``expand`` $W_1$ and ``shrink`` $W_2$, each with
    ``weight`` (and ``bias``), as in `fngrad.layers.linear`. x has the shape ``(...,
    features)``, y too. With 2/3 of the hidden size it has the parameters of a
    perceptron without gates.

    Args:
        features: last axis of x and y.
        hidden_size: number of units.
        activation: $\sigma$; `jax.nn.silu` is SwiGLU, `jax.nn.gelu` GEGLU,
            `jax.nn.relu` ReGLU, `jax.nn.sigmoid` GLU.
        bias: whether the three maps have a bias, which begins at 0.
        weight_init: draws the weights; by default `glorot_uniform`.
        output_init: draws $W_2$ instead.

    Raises:
        ValueError: if a size is below 1; at ``apply``, if x has another last axis or is
            not floating, or the parameters have other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.swiglu(6, 16)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones((5, 6))).shape
        (5, 6)

    References:
        Shazeer 2020, "GLU variants improve transformer", equation 6,
        https://arxiv.org/abs/2002.05202
    """
    check_sizes(features=features, hidden_size=hidden_size)
    wide, narrow = (features, hidden_size), (hidden_size, features)
    maps = {
        "gate": (wide, weight_init),
        "expand": (wide, weight_init),
        "shrink": (narrow, output_init or weight_init),
    }
    shapes = shapes_of_maps(maps, bias)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, shapes)
        x = float_array_of(x, features)
        gates = activation(dense(params["gate"], x))
        units = dense(params["expand"], x)
        return dense(params["shrink"], gates.astype(units.dtype) * units)

    return Layer(init_of_maps(maps, bias), by_position(apply))
