"""Transposed convolution: the map that goes back from a convolution's output."""

from typing import Literal

import jax
import jax.numpy as jnp

from fngrad.layers.core import Layer, add_bias, check_params, float_array
from fngrad.layers.initializers import (
    HE,
    ZEROS,
    Initializer,
    dense_params,
    dense_shapes,
)
from fngrad.layers.windows import (
    Padding,
    Sizes,
    check_groups,
    check_image,
    convolution_windows,
)
from fngrad.numerics.convolutions import (
    Geometry,
    convolve,
    positions,
)
from fngrad.programs.keywords_elsewhere import OF_LAYERS, explains_keywords
from fngrad.types import Key, Params


@explains_keywords(OF_LAYERS)
def conv_transpose(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = HE,
    bias_init: Initializer = ZEROS,
    implementation: Literal["native", "canonical"] | None = None,
) -> Layer:
    r"""Add a window's entries at each position of x, ``stride`` positions apart.

    $$y_{q,o} = b_o + \sum_{s p + d k = q}\, \sum_i x_{p,i}\, W_{k,i,o}$$

    with the stride $s$ and the dilation $d$. Without the bias this is the transpose of
    the linear map that `fngrad.layers.conv` makes with the same stride, padding,
    dilation and groups: what the padding adds there is cut off here.

    Parameters: ``weight`` $W$ of shape ``(*kernel_size, in_channels // groups,
    out_channels)`` and ``bias`` $b$ of shape ``(out_channels,)``.

    Args:
        in_channels: last axis of x.
        out_channels: last axis of y.
        kernel_size: the window, over 1 to 3 axes; an int is a square window over an
            image.
        stride: positions of y from one position of x to the next, one for all axes or
            each; y is about so many times as large as x.
        padding: ``"SAME"`` gives size * stride positions, ``"VALID"`` all that a window
            reaches, at least size * stride; pairs ``(before, after)`` cut so many
            positions off each end, or add them if they are negative. torch's
            ``padding=p, output_padding=o`` is ``(p, p - o)``.
        dilation: positions between the entries of a window, likewise.
        groups: channels are split in so many groups, each with outputs of its own.
        bias: whether there is a $b$.
        weight_init: draws $W$, by default `he_normal`.
        bias_init: draws $b$.
        implementation: as in `fngrad.layers.conv`.

    Raises:
        ValueError: if a size is below 1, groups does not divide the channels, or the
            padding or the implementation is unknown; at ``apply``, if x has another
            shape or is not floating, the padding leaves nothing of y, or the parameters
            have other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.conv_transpose(4, 1, 3, stride=2)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones((4, 4, 4))).shape
        (8, 8, 1)

    References:
        Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning",
        chapter 4, https://arxiv.org/abs/1603.07285. `jax.lax.conv_transpose` takes the
        window from the other end, and pairs are there what is padded around x.
    """
    window, strides, dilations, pads = convolution_windows(
        kernel_size, stride, padding, dilation, implementation
    )
    rank = len(window)
    check_groups(in_channels, out_channels, groups)
    shape = *window, in_channels // groups, out_channels
    shapes = dense_shapes(shape, bias)
    where = _geometry(window, strides, pads, dilations, groups)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, shapes)
        x = check_image(float_array(x), rank, in_channels)
        if min(positions(x.shape[:-1], window, where)) < 1:
            raise ValueError(
                f"need a padding that leaves a position of y, got {padding=} with x of "
                f"shape {x.shape}"
            )
        weight = params["weight"]
        flipped = jnp.flip(weight, axis=tuple(range(rank)))
        y = convolve(x.astype(weight.dtype), flipped, where, implementation)
        return add_bias(y, params)

    return Layer(
        lambda key: dense_params(key, shape, weight_init, bias_init if bias else None),
        apply,
    )


def _geometry(
    window: Sizes,
    strides: Sizes,
    padding: str | list[tuple[int, int]],
    dilations: Sizes,
    groups: int,
) -> Geometry:
    """Return where windows of stride 1 lie on x, spread by the strides."""
    extents = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    if isinstance(padding, str):
        cut = _same if padding == "SAME" else _valid
        padding = [cut(e, s) for e, s in zip(extents, strides, strict=True)]
    # A window reaches extent - 1 positions past each end of x.
    around = tuple(
        (e - 1 - before, e - 1 - after)
        for e, (before, after) in zip(extents, padding, strict=True)
    )
    return Geometry((1,) * len(window), around, dilations, strides, groups)


def _same(extent: int, stride: int) -> tuple[int, int]:
    """Return what to cut off for size * stride positions, half of it before."""
    before = max(extent - stride, 0) // 2
    return before, extent - stride - before


def _valid(extent: int, stride: int) -> tuple[int, int]:
    return 0, min(extent - stride, 0)
