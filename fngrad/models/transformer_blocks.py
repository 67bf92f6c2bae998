"""The block that transformers repeat: attention and a perceptron, each a branch."""

import fngrad.layers as layers
from fngrad.layers.core import Layer
from fngrad.layers.initializers import Initializer
from fngrad.layers.rematerialization import CheckpointPolicy, rematerialized
from fngrad.models.arguments import Activation, optional_drop_path, optional_dropout
from fngrad.types import Scalar


def transformer_block(
    features: int,
    num_heads: int,
    *,
    hidden_size: int | None,
    activation: Activation,
    dropout_rate: Scalar | None,
    causal: bool,
    weight_init: Initializer,
    output_init: Initializer,
    drop_path_rate: Scalar | None = None,
) -> Layer:
    """Return a pre-norm block of ``(length, features)``.

    Args:
        features: last axis of x and y.
        num_heads: divides features.
        hidden_size: of the perceptron, by default 4 * features.
        activation: of the perceptron.
        dropout_rate: of attention weights and of each branch.
        causal: whether position t attends to positions 0 to t only.
        weight_init: draws the weights.
        output_init: draws those that end a branch.
        drop_path_rate: at which each branch is left out.

    Raises:
        ValueError: if num_heads does not divide features.
    """
    if num_heads > 0 and features % num_heads:
        raise ValueError(
            f"need num_heads that divides features, got {num_heads=} {features=}"
        )
    attend = layers.multi_head_attention(
        features,
        num_heads,
        causal=causal,
        dropout_rate=dropout_rate,
        weight_init=weight_init,
        output_init=output_init,
    )
    width = 4 * features if hidden_size is None else hidden_size
    perceptron = {
        "expand": layers.linear(features, width, weight_init=weight_init),
        "activation": activation,
        "shrink": layers.linear(width, features, weight_init=output_init),
    }
    norm = layers.layer_norm(features)
    rates = dropout_rate, drop_path_rate
    return pre_norm_block(norm, attend, perceptron, *rates)


def pre_norm_block(
    norm: Layer,
    attend: Layer,
    feed_forward: dict[str, Layer | Activation],
    dropout_rate: Scalar | None,
    drop_path_rate: Scalar | None = None,
) -> Layer:
    """Return attention and then a feed-forward layer, each a branch behind a norm.

    Args:
        norm: of each branch, with parameters of its own.
        attend: the attention.
        feed_forward: what the second branch applies in turn, by name.
        dropout_rate: of each branch.
        drop_path_rate: at which each branch is left out.
    """

    def branch(inner: dict[str, Layer | Activation]) -> Layer:
        return layers.residual(
            layers.serial(
                norm=norm,
                **inner,
                dropout=optional_dropout(dropout_rate),
                drop_path=optional_drop_path(drop_path_rate),
            )
        )

    return layers.serial(attention=branch({"attend": attend}), mlp=branch(feed_forward))


def repeated_blocks(
    block: Layer, count: int, *, scan: bool, remat: bool | CheckpointPolicy
) -> Layer:
    """Return a block so many times, one by one or in one loop of the program."""
    if scan:
        return layers.repeat(block, count, remat=remat)
    return layers.serial(*[rematerialized(block, remat)] * count)
