"""Arguments of layers that slide a window: numbers per axis, padding, groups."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

import fngrad.numerics as numerics
from fngrad.layers.core import check_sizes
from fngrad.numerics.convolutions import IMPLEMENTATIONS

Padding: TypeAlias = str | Sequence[tuple[int, int]]
Sizes: TypeAlias = tuple[int, ...]  # one per axis of the positions


class Windows(NamedTuple):
    """The windows of a convolution."""

    sizes: Sizes
    strides: Sizes
    dilations: Sizes
    padding: str | list[tuple[int, int]]


def convolution_windows(
    kernel_size: int | Sizes,
    stride: int | Sizes,
    padding: Padding,
    dilation: int | Sizes,
    implementation: str | None,
) -> Windows:
    """Return the windows that a convolution's arguments describe.

    Raises:
        ValueError: if an argument is out of range or unknown, or has another number of
            axes than the kernel, of 1 to 3.
    """
    sizes = each_axis(kernel_size, 2)
    rank = len(sizes)
    if rank not in (1, 2, 3):
        raise ValueError(f"need kernel_size over 1 to 3 axes, got {kernel_size=}")
    strides = per_axis("stride", stride, rank)
    dilations = per_axis("dilation", dilation, rank)
    pads = checked_padding(padding, rank)
    per_axis("kernel_size", sizes, rank)
    if implementation is not None:
        numerics.check_choice("implementation", implementation, IMPLEMENTATIONS)
    return Windows(sizes, strides, dilations, pads)


def each_axis(value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return one number for each axis."""
    is_one = isinstance(value, int | np.integer | np.bool_)  # the last is refused
    return (value,) * rank if is_one else tuple(value)


def per_axis(name: str, value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return one size for each axis.

    Raises:
        ValueError: if there is another number of them, or one is below 1.
    """
    sizes = each_axis(value, rank)
    if len(sizes) != rank:
        raise ValueError(f"need one {name} for each of {rank} axes, got {value}")
    return tuple(numerics.check_count(name, size, 1) for size in sizes)


def checked_padding(padding: Padding, rank: int) -> str | list[tuple[int, int]]:
    """Return the padding, pairs as a list.

    Raises:
        ValueError: if it is neither a known name nor one pair for each axis.
    """
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                'need padding "SAME", "VALID" or pairs (before, after), '
                f"got {padding!r}"
            )
        return padding
    pairs = [tuple(pair) for pair in padding]
    if len(pairs) != rank or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"need a padding (before, after) for each of {rank} axes, got {padding}"
        )
    return [(before, after) for before, after in pairs]


def check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    """Raise unless the groups divide the channels.

    Raises:
        ValueError: if they do not, or a size is below 1.
    """
    check_sizes(in_channels=in_channels, out_channels=out_channels, groups=groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            "need groups that divide in_channels and out_channels, "
            f"got {groups=} {in_channels=} {out_channels=}"
        )


def check_image(x: jax.Array, rank: int, channels: int | None) -> jax.Array:
    """Return one example with so many axes of positions, and these channels.

    Raises:
        ValueError: if x has another shape; the message says that it is one example.
    """
    if rank < 1 or x.ndim != rank + 1 or channels not in (None, x.shape[-1]):
        positions = {1: ("length",), 2: ("height", "width")}.get(rank, ("...",))
        need = ", ".join((*positions, str(channels or "channels")))
        raise ValueError(
            f"need x of shape ({need}), got shape {x.shape}; layers take one example, "
            "fngrad.layers.batched makes the batch"
        )
    return x
