"""Convolutions and pooling over one image or one sequence, channels last.

An example has the shape ``(length, channels)`` or ``(height, width, channels)``. The
*window* slides over the axes before the channels. ``padding`` is ``"SAME"`` (zeros
around, so that the output has ceil(size / stride) positions), ``"VALID"`` (none), or
a pair ``(before, after)`` for each of these axes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.tree as tree
from fngrad.layers.core import (
    Layer,
    add_bias,
    check_params,
    float_array,
    no_params,
    with_narrow_residuals,
)
from fngrad.layers.initializers import (
    HE,
    ZEROS,
    Initializer,
    dense_params,
    dense_shapes,
)
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.layers.windows import (
    Padding,
    Sizes,
    check_groups,
    check_image,
    checked_padding,
    convolution_windows,
    each_axis,
    per_axis,
)
from fngrad.numerics.arithmetic import largest
from fngrad.numerics.convolutions import (
    Geometry,
    contents,
    convolve,
    positions,
)
from fngrad.programs.keywords_elsewhere import OF_LAYERS, explains_keywords
from fngrad.programs.platforms import by_platform
from fngrad.types import Key, Params

MAX_CUTS = 16  # a larger window is not cut into its entries


@explains_keywords(OF_LAYERS)
def conv(
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
    r"""Slide a window over the positions of x and map each content affinely.

    $$y_{p,o} = b_o + \sum_{k,i} x_{s p + d k,\, i}\, W_{k,i,o}$$

    with the stride $s$ and the dilation $d$, over the padded x.

    Parameters: ``weight`` $W$ of shape ``(*kernel_size, in_channels // groups,
    out_channels)`` and ``bias`` $b$ of shape ``(out_channels,)``.

    Args:
        in_channels: last axis of x.
        out_channels: last axis of y.
        kernel_size: the window, ``(length,)`` or ``(height, width)``; an int is a
            square window over an image.
        stride: positions from one window to the next, one for all axes or each.
        padding: ``"SAME"``, ``"VALID"`` or pairs; ``[(k - 1, 0)]`` makes a sequence's
            convolution causal.
        dilation: positions between the entries of a window, likewise.
        groups: channels are split in so many groups, each with outputs of its own;
            ``groups=in_channels`` is a depthwise convolution.
        bias: whether there is a $b$.
        weight_init: draws $W$, by default `he_normal`.
        bias_init: draws $b$.
        implementation: ``"native"`` is XLA's convolution with JAX's derivatives;
            ``"canonical"`` is the one for CPU, whose gradients are as fast in a loop
            inside the program as outside; forward mode, as in `ggn_vp`, is slow in such
            a loop. By default the program takes the canonical one where it is lowered
            for CPU, the native one elsewhere. They differ by rounding.

    Raises:
        ValueError: if a size is below 1, groups does not divide the channels, or the
            padding or the implementation is unknown; at ``apply``, if x has another
            shape, is not floating, or is smaller than the window, or the parameters
            have other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.conv(1, 4, 3, stride=2)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones((8, 8, 1))).shape
        (4, 4, 4)
    """
    window, strides, dilations, pads = convolution_windows(
        kernel_size, stride, padding, dilation, implementation
    )
    rank = len(window)
    check_groups(in_channels, out_channels, groups)
    shape = *window, in_channels // groups, out_channels
    shapes = dense_shapes(shape, bias)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, shapes)
        x = check_image(float_array(x), rank, in_channels)
        where = _geometry(x, window, strides, pads, dilations, groups)
        weight = params["weight"]
        y = convolve(x.astype(weight.dtype), weight, where, implementation)
        return add_bias(y, params)

    return Layer(
        lambda key: dense_params(key, shape, weight_init, bias_init if bias else None),
        apply,
    )


@explains_keywords(OF_LAYERS)
def max_pool(
    window: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """Take the largest entry of each window, channel by channel.

    Args:
        window: sizes over the axes before the channels; an int holds for all.
        stride: positions from one window to the next; by default windows adjoin.
        padding: as in `conv`; what is padded is never the largest, and a
            window of nothing else gives -inf.

    Raises:
        ValueError: if a size is below 1 or the padding is unknown; at ``apply``, if x
            has another number of axes, is not floating, or is smaller than the window.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> x = jnp.array([[1.0], [5.0], [2.0], [3.0]])
        >>> print(layers.max_pool(2).apply((), x)[:, 0])
        [5. 3.]
    """

    def pool(x: jax.Array, sizes: Sizes, where: Geometry) -> jax.Array:
        native = functools.partial(_reduce_window, sizes, where, -jnp.inf, lax.max)
        cut = functools.partial(_largest_content, sizes, where)
        is_small = math.prod(sizes) <= MAX_CUTS
        reduce = by_platform(cpu=cut, default=native) if is_small else native

        def largest(_: Params, x: jax.Array) -> jax.Array:
            # The gradient adds up the windows of which an entry is the largest.
            return reduce(tree.widen(x)).astype(x.dtype)

        return with_narrow_residuals(largest, (), x)

    return _pool("max_pool", pool, window, stride, padding)


@explains_keywords(OF_LAYERS)
def avg_pool(
    window: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """Take the mean of each window, channel by channel, in at least float32.

    Args:
        window: sizes over the axes before the channels; an int holds for all.
        stride: positions from one window to the next; by default windows adjoin.
        padding: as in `conv`; the mean is over what is not padded, and a
            window of nothing else gives NaN.

    Raises:
        ValueError: if a size is below 1 or the padding is unknown; at ``apply``, if x
            has another number of axes, is not floating, or is smaller than the window.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> x = jnp.array([[1.0], [5.0], [2.0]])
        >>> print(layers.avg_pool(2, padding="SAME").apply((), x)[:, 0])
        [3. 2.]
    """

    def pool(x: jax.Array, sizes: Sizes, where: Geometry) -> jax.Array:
        wide = x.astype(tree.wide_dtype(x.dtype))
        total = _reduce_window(sizes, where, 0.0, lax.add, wide)
        count = _reduce_window(sizes, where, 0.0, lax.add, jnp.ones_like(wide))
        return (total / count).astype(x.dtype)

    return _pool("avg_pool", pool, window, stride, padding)


def global_max_pool(x: jax.Array) -> jax.Array:
    """Return the largest entry of each channel over all positions."""
    # The gradient counts the positions that share the largest entry.
    axes = tuple(range(x.ndim - 1))
    return largest(tree.widen(x), axes).astype(x.dtype)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Return the mean of each channel over all positions, in at least float32."""
    wide = x.astype(tree.wide_dtype(x.dtype))
    return jnp.mean(wide, axis=tuple(range(x.ndim - 1))).astype(x.dtype)


def _pool(
    name: str,
    reduce: Callable[[jax.Array, Sizes, Geometry], jax.Array],
    window: Any,
    stride: Any,
    padding: Padding,
) -> Layer:
    if isinstance(padding, str):
        checked_padding(padding, 1)
    for what, sizes in ("window", window), ("stride", 1 if stride is None else stride):
        per_axis(what, sizes, len(each_axis(sizes, 1)))

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        x = float_array(x)
        rank = len(each_axis(window, x.ndim - 1))
        x = check_image(x, rank, None)
        sizes = per_axis("window", window, rank)
        strides = sizes if stride is None else per_axis("stride", stride, rank)
        where = _geometry(
            x, sizes, strides, checked_padding(padding, rank), (1,) * rank
        )
        return reduce(x, sizes, where)

    return Layer(no_params, made_of(apply, Parts(name)))


def _reduce_window(
    window: Sizes, where: Geometry, start: float, combine: Any, x: jax.Array
) -> jax.Array:
    pads = *where.padding, (0, 0)
    return lax.reduce_window(x, start, combine, (*window, 1), (*where.strides, 1), pads)


def _largest_content(window: Sizes, where: Geometry, x: jax.Array) -> jax.Array:
    """Return the largest entry of each window, by elementwise comparisons.

    Of equal entries the first gets the gradient, as in `jax.lax.reduce_window`, whose
    gradient is several times slower on CPU.
    """

    def larger(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where((a >= b) | jnp.isnan(a), a, b)

    return functools.reduce(larger, contents(x, window, where, -jnp.inf))


def _geometry(
    x: jax.Array,
    window: Sizes,
    strides: Sizes,
    padding: str | list[tuple[int, int]],
    dilations: Sizes,
    groups: int = 1,
) -> Geometry:
    """Return where the windows lie on x; at least one must fit."""
    sizes = x.shape[:-1]
    if isinstance(padding, str):
        extents = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
        padding = lax.padtype_to_pads(sizes, extents, strides, padding)
    where = Geometry(strides, tuple(padding), dilations, (1,) * len(sizes), groups)
    if min(positions(sizes, window, where)) < 1:
        raise ValueError(f"need x no smaller than the {window=}, got shape {x.shape}")
    return where
