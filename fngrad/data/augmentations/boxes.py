"""Boxes of pixels."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fngrad.data.augmentations.image_batches import over_channels
from fngrad.types import Key

_ATTEMPTS = 10  # as in torchvision


class Box(NamedTuple):
    """Rows from ``top`` to before ``bottom``, columns from ``left`` to ``right``."""

    top: jax.Array  # int32, shape ()
    bottom: jax.Array
    left: jax.Array
    right: jax.Array

    def area(self) -> jax.Array:
        """Return the number of pixels, int32, shape ()."""
        return (self.bottom - self.top) * (self.right - self.left)


def around(center: jax.Array, sizes: jax.Array, limits: tuple[int, int]) -> Box:
    """Return the box of a size around a pixel, without what is outside the image.

    Args:
        center: (row, column), int32, shape (2,).
        sizes: (height, width) in pixels; of an even size one more pixel is before the
            center than after it.
        limits: (height, width) of the image.
    """
    low = center - sizes // 2
    edges = jnp.array(limits, jnp.int32)
    start, end = jnp.clip(low, 0, edges), jnp.clip(low + sizes, 0, edges)
    return Box(start[0], end[0], start[1], end[1])


def random_pixel(key: jax.Array, limits: tuple[int, int]) -> jax.Array:
    """Return (row, column) of a uniform pixel, int32, shape (2,)."""
    return jax.random.randint(key, (2,), 0, jnp.array(limits, jnp.int32), jnp.int32)


def check_intervals(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Raise unless the intervals of `random_box` are ordered and in their ranges.

    Raises:
        ValueError: if one is not.
    """
    if not 0 <= scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"need 0 <= low <= high <= 1 in scale=(low, high), got {scale=}"
        )
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(
            f"need 0 < low <= high < inf in ratio=(low, high), got {ratio=}"
        )


def random_box(
    key: Key,
    limits: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    is_smaller: bool,
) -> tuple[Box, jax.Array]:
    """Return the first of ten random boxes that fits, and whether there is one.

    Args:
        limits: (height, width) of the image.
        scale: interval of the part of the image's area, drawn uniformly.
        ratio: interval of the ratio of height to width, drawn log-uniformly.
        is_smaller: whether a box must be smaller than the image in both directions.
    """
    k_area, k_ratio, k_place = jax.random.split(key, 3)
    height, width = limits
    parts = jax.random.uniform(k_area, (_ATTEMPTS,), minval=scale[0], maxval=scale[1])
    areas = parts * (height * width)
    logs = jax.random.uniform(
        k_ratio, (_ATTEMPTS,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])
    )
    heights, widths = (
        jnp.maximum(jnp.round(jnp.sqrt(side)), 1).astype(jnp.int32)
        for side in (areas * jnp.exp(logs), areas / jnp.exp(logs))
    )
    fits = (heights <= height - is_smaller) & (widths <= width - is_smaller)
    first = jnp.argmax(fits)
    tall, wide = heights[first], widths[first]
    k_top, k_left = jax.random.split(k_place)
    top = jax.random.randint(k_top, (), 0, height - tall + 1, jnp.int32)
    left = jax.random.randint(k_left, (), 0, width - wide + 1, jnp.int32)
    return Box(top, top + tall, left, left + wide), jnp.any(fits)


def paste(box: Box, inside: jax.Array, image: jax.Array) -> jax.Array:
    """Return an image whose box is filled with a value or with another image's."""
    rows, columns = (jnp.arange(n, dtype=jnp.int32) for n in image.shape[:2])
    in_rows = (rows >= box.top) & (rows < box.bottom)
    in_columns = (columns >= box.left) & (columns < box.right)
    is_inside = in_rows[:, None] & in_columns[None, :]
    return jnp.where(over_channels(is_inside, image), inside, image)
