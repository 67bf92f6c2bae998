"""A residual network of convolutions, with norms and activations before them."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax

import fngrad.layers as layers
import fngrad.numerics as numerics
from fngrad.layers.core import Layer, LayerLike, StatefulLayer, check_sizes
from fngrad.models.arguments import (
    Activation,
    check_sequence,
    optional_drop_path,
    rates_by_depth,
)
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.types import Scalar

Stem = Literal["imagenet", "small"]
Norm = Literal["batch", "group"]

# depth: (blocks of each stage, whether these are bottlenecks)
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
_EXPANSION = 4  # of a bottleneck's output over its width


@explains_keywords()
def resnet(
    in_channels: int,
    classes: int,
    *,
    depth: int = 18,
    blocks: Sequence[int] | None = None,
    bottleneck: bool | None = None,
    stem: Stem = "imagenet",
    width: int = 64,
    norm: Norm = "batch",
    groups: int = 32,
    momentum: Scalar = 0.9,
    activation: Activation = jax.nn.relu,
    drop_path_rate: Scalar | None = None,
) -> Layer | StatefulLayer:
    r"""Return a classifier of images, ``(h, w, in_channels) -> (classes,)`` logits.

    Version 2, with norm and activation $a(x) = \sigma(\text{norm}(x))$ before each
    convolution: a block is

    $$y = s(x) + W_2 * a(W_1 * a(x)), \quad s(x) = x \text{ or } W_s * a(x),$$

    with 3x3 windows; a bottleneck has 1x1, 3x3 and 1x1. The first block of each stage
    doubles the channels and, but for the first stage, halves the image: only there is a
    projection $W_s$. Norm, activation, the mean over all positions and an affine map
    follow the last. Convolutions have no bias.

    With ``norm="batch"`` it is a stateful layer: ``params, model_state =
    model.init(key)``, and `fngrad.layers.batched` has the batch to take statistics
    over. With ``"group"`` it is a layer of one example.

    Parameters: ``stem``, ``stages/layers/0/layers/0/...`` by stage and block, ``norm``,
    ``head``; in a block ``norm``, ``branch``, and ``projection`` beside it.

    Args:
        in_channels: last axis of x.
        classes: number of logits.
        depth: 18, 34, 50, 101 or 152; from 50 on blocks are bottlenecks.
        blocks: of each stage, in place of a depth's, such as ``(1, 1, 1)``.
        bottleneck: whether blocks are bottlenecks, in place of a depth's choice.
        stem: ``"imagenet"``, a 7x7 convolution and max pooling, each with stride 2, for
            images of about 224x224; ``"small"``, a 3x3 convolution with stride 1, for
            8x8 to 64x64.
        width: channels of the first stage; four times as many leave its bottlenecks.
        norm: ``"batch"`` or ``"group"``.
        groups: of group norm; divides all channels.
        momentum: of batch norm's running statistics, in [0, 1].
        activation: $\sigma$.
        drop_path_rate: in [0, 1], at which the last block's branch is left out for an
            example, with a key; of the blocks before, evenly down to 0.

    Raises:
        ValueError: if a size is below 1 or unknown, ``groups`` does not divide the
            channels, or a rate is outside [0, 1]; at ``apply``, if x has another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> import fngrad.models as models
        >>> model = models.resnet(1, 10, blocks=(1, 1), stem="small", width=4)
        >>> params, model_state = model.init(jax.random.key(0))
        >>> forward = jax.jit(layers.batched(model))
        >>> logits, _ = forward(params, model_state, jnp.ones((2, 8, 8, 1)))
        >>> logits.shape
        (2, 10)

    References:
        He et al. 2016, "Identity mappings in deep residual networks", figure 1(b),
        https://arxiv.org/abs/1603.05027; depths as in table 1 of He et al. 2015, "Deep
        residual learning for image recognition", https://arxiv.org/abs/1512.03385.
        Differs from them in: a bottleneck's stride is at its 3x3 convolution, as in
        torchvision. The number of parameters differs from that of version 1 by the
        norms, which are over the inputs of convolutions instead of their outputs.
    """
    counts, is_bottleneck = _counts(depth, blocks, bottleneck)
    check_sizes(in_channels=in_channels, classes=classes, width=width)
    numerics.check_choice("stem", stem, get_args(Stem))
    numerics.check_choice("norm", norm, get_args(Norm))
    make_norm = functools.partial(layers.group_norm, groups=groups)
    if norm == "batch":
        make_norm = functools.partial(layers.batch_norm, momentum=momentum)
    kind = _Kind(make_norm, activation, is_bottleneck)
    rates = iter(rates_by_depth(drop_path_rate, sum(counts)))
    channels, stages = width, []
    for stage, count in enumerate(counts):
        inner = width << stage
        entries = []
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            entries.append(_block(kind, channels, inner, stride, next(rates)))
            channels = inner * (_EXPANSION if is_bottleneck else 1)
        stages.append(layers.serial(*entries))
    return layers.serial(
        stem=_stem(in_channels, width, stem),
        stages=layers.serial(*stages),
        norm=make_norm(channels),
        activation=activation,
        pool=layers.global_avg_pool,
        head=layers.linear(channels, classes),
    )


class _Kind(NamedTuple):
    """What all blocks of a network share."""

    norm: Callable[[int], LayerLike]  # channels -> layer
    activation: Activation
    is_bottleneck: bool


def _counts(
    depth: int, blocks: Sequence[int] | None, bottleneck: bool | None
) -> tuple[tuple[int, ...], bool]:
    """Return how many blocks each stage has, and whether they are bottlenecks."""
    if blocks is not None:
        check_sequence("blocks", blocks)
        if not blocks:
            raise ValueError(f"need at least one stage, got {blocks=}")
        for count in blocks:
            check_sizes(blocks=count)
        return tuple(blocks), bool(bottleneck)
    numerics.check_choice("depth", depth, tuple(_DEPTHS))
    counts, is_bottleneck = _DEPTHS[depth]
    return counts, is_bottleneck if bottleneck is None else bottleneck


def _conv(in_size: int, out_size: int, window: int, stride: int = 1) -> Layer:
    """Return a convolution with as many zeros before as after."""
    around = (window - 1) // 2
    return layers.conv(
        in_size,
        out_size,
        window,
        stride=stride,
        padding=[(around, around)] * 2,
        bias=False,
    )


def _stem(in_channels: int, width: int, stem: Stem) -> Layer:
    if stem == "small":
        return layers.serial(_conv(in_channels, width, 3))
    return layers.serial(
        _conv(in_channels, width, 7, 2),
        layers.max_pool(3, stride=2, padding=[(1, 1)] * 2),
    )


def _block(
    kind: _Kind, in_size: int, width: int, stride: int, rate: Scalar | None
) -> LayerLike:
    before: dict[str, LayerLike] = {
        "norm": kind.norm(in_size),
        "activation": kind.activation,
    }
    if kind.is_bottleneck:
        out_size = width * _EXPANSION
        convs = [
            _conv(in_size, width, 1),
            _conv(width, width, 3, stride),
            _conv(width, out_size, 1),
        ]
    else:
        out_size = width
        convs = [_conv(in_size, width, 3, stride), _conv(width, width, 3)]
    between = kind.norm(width), kind.activation
    entries = [entry for conv in convs[1:] for entry in (*between, conv)]
    branch = layers.serial(convs[0], *entries, optional_drop_path(rate))
    if stride == 1 and in_size == out_size:
        return layers.residual(layers.serial(**before, branch=branch))
    projection = _conv(in_size, out_size, 1, stride)
    both = layers.parallel(branch=branch, projection=projection, combine=sum)
    return layers.serial(**before, paths=both)
