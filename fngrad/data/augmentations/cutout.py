"""Cutout: a square of each image is hidden."""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.boxes import around, paste, random_pixel
from fngrad.data.augmentations.image_batches import (
    BatchMap,
    chance,
    check_probability,
    filling,
    height_and_width,
    image_map,
)
from fngrad.types import Key, Scalar, Selector


def cutout(
    size: int,
    *,
    probability: Scalar = 1.0,
    fill: Scalar = 0.0,
    images: Selector = "x",
) -> BatchMap:
    """Fill a square around a uniform pixel of each image with a constant.

    The square may reach over the edge of the image, so that less of it is hidden.

    Args:
        size: side of the square in pixels, >= 1.
        probability: of a square, in [0, 1].
        fill: the constant, in units of the image.
        images: selects leaves of the batch; those of an example have the same square.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if the probability is not a number.
        ValueError: if the size is not positive or the probability outside [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> hide = augmentations.cutout(4)
        >>> batch = hide({"x": jnp.ones((1, 8, 8))}, jax.random.key(3))
        >>> print(batch["x"].sum())
        48.0

    References:
        DeVries and Taylor, Improved regularization of convolutional neural networks
        with cutout, 2017, section 3, https://arxiv.org/abs/1708.04552. Differs from the
        authors' code in: the side of an odd size is ``size``, there ``size - 1``.
    """
    size = numerics.check_count("size", size, 1)
    check_probability(probability)

    def hidden(image: jax.Array, key: Key) -> jax.Array:
        k_chance, k_center = jax.random.split(key)
        limits = height_and_width(image)
        side = jnp.int32(size) * chance(k_chance, probability).astype(jnp.int32)
        box = around(random_pixel(k_center, limits), jnp.array([side, side]), limits)
        return paste(box, filling(fill, image), image)

    return image_map("cutout", hidden, images)
