"""Boxes of pixels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fngrad.data.augmentations.image_batches import over_channels


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


def paste(box: Box, inside: jax.Array, image: jax.Array) -> jax.Array:
    """Return an image whose box is filled with a value or with another image's."""
    rows, columns = (jnp.arange(n, dtype=jnp.int32) for n in image.shape[:2])
    in_rows = (rows >= box.top) & (rows < box.bottom)
    in_columns = (columns >= box.left) & (columns < box.right)
    is_inside = in_rows[:, None] & in_columns[None, :]
    return jnp.where(over_channels(is_inside, image), inside, image)
