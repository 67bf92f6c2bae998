"""A multilayer perceptron: linear layers with activations between them."""

import itertools
from collections.abc import Sequence

import jax

import fngrad.layers as layers
from fngrad.layers.core import Layer
from fngrad.layers.initializers import GLOROT, HE, Initializer
from fngrad.models.arguments import (
    Activation,
    check_sequence,
    optional_dropout,
)
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.types import Scalar


@explains_keywords()
def mlp(
    sizes: Sequence[int],
    activation: Activation = jax.nn.relu,
    *,
    dropout_rate: Scalar | None = None,
    weight_init: Initializer = HE,
    output_init: Initializer = GLOROT,
) -> Layer:
    """Return a multilayer perceptron, ``(sizes[0],) -> (sizes[-1],)``.

    Parameters: ``layers/0/weight``, ``layers/0/bias``, ``layers/1/weight``, ...

    Args:
        sizes: input, hidden layers, output; at least two.
        activation: applied after each hidden layer.
        dropout_rate: in [0, 1], applied after each hidden activation if ``apply`` gets
            a key.
        weight_init: draws the weights of hidden layers, by default `he_normal`.
        output_init: draws the last weights, by default `glorot_uniform`.

    Raises:
        ValueError: if there are fewer than two sizes, one is below 1, or the rate is
            outside [0, 1]; at ``apply``, if x has another size.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.mlp((64, 32, 10))
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(jax.vmap(model.apply, (None, 0)))(params, jnp.ones((5, 64))).shape
        (5, 10)
    """
    check_sequence("sizes", sizes)
    if len(sizes) < 2:
        raise ValueError(f"need at least two sizes, input and output, got {sizes=}")
    dropout = optional_dropout(dropout_rate)
    hidden = [
        entry
        for in_size, out_size in itertools.pairwise(sizes[:-1])
        for entry in (
            layers.linear(in_size, out_size, weight_init=weight_init),
            activation,
            dropout,
        )
    ]
    last = layers.linear(sizes[-2], sizes[-1], weight_init=output_init)
    return layers.serial(*hidden, last)
