"""A convolutional classifier of images: stages of convolution and pooling."""

import itertools
from collections.abc import Sequence

import jax

import fngrad.layers as layers
from fngrad.layers.core import Layer, check_sizes
from fngrad.layers.initializers import HE
from fngrad.models.arguments import (
    Activation,
    check_sequence,
    optional_dropout,
)
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.types import Scalar


@explains_keywords()
def cnn(
    in_shape: tuple[int, int, int],
    classes: int,
    *,
    channels: Sequence[int] = (16, 32),
    kernel_size: int = 3,
    hidden_size: int = 64,
    activation: Activation = jax.nn.relu,
    dropout_rate: Scalar | None = None,
) -> Layer:
    """Return a small convolutional classifier, ``(h, w, c) -> (classes,)`` logits.

    Each stage is a convolution that keeps the size, an activation, and max pooling
    that halves it; a hidden layer, dropout and the logits follow. Images may be as
    small as 8x8. Parameters: ``layers/0/weight`` and so on, in this order.

    Args:
        in_shape: height, width and channels of x.
        classes: number of logits.
        channels: of each stage.
        kernel_size: of each convolution.
        hidden_size: of the hidden layer.
        activation: after each convolution and the hidden layer.
        dropout_rate: in [0, 1], before the logits, with a key.

    Raises:
        ValueError: if a size is below 1, the rate is outside [0, 1], or there are
            more stages than the image can be halved; at ``apply``, if x has another
            shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.cnn((8, 8, 1), 10)
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(model.apply)(params, jnp.ones((8, 8, 1))).shape
        (10,)
    """
    check_sequence("in_shape", in_shape)
    check_sequence("channels", channels)
    if len(in_shape) != 3:
        raise ValueError(f"need in_shape (height, width, channels), got {in_shape=}")
    height, width, in_channels = in_shape
    check_sizes(height=height, width=width)
    rows, columns = height >> len(channels), width >> len(channels)
    if min(rows, columns) < 1:
        raise ValueError(
            f"need an image that can be halved {len(channels)} times, got {in_shape=}"
        )
    stages = [
        entry
        for c_in, c_out in itertools.pairwise((in_channels, *channels))
        for entry in (
            layers.conv(c_in, c_out, kernel_size),
            activation,
            layers.max_pool(2),
        )
    ]
    flat_size = rows * columns * (in_channels, *channels)[-1]
    return layers.serial(
        *stages,
        layers.flatten,
        layers.linear(flat_size, hidden_size, weight_init=HE),
        activation,
        optional_dropout(dropout_rate),
        layers.linear(hidden_size, classes),
    )
