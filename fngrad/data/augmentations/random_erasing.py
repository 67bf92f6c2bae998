"""Random erasing: a rectangle of each image is hidden."""

from typing import Literal

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.boxes import check_intervals, paste, random_box
from fngrad.data.augmentations.image_batches import (
    BatchMap,
    chance,
    check_probability,
    filling,
    height_and_width,
    image_map,
)
from fngrad.types import Key, Scalar, Selector


def random_erasing(
    probability: Scalar = 0.5,
    *,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    fill: Scalar | Literal["noise"] = 0.0,
    images: Selector = "x",
) -> BatchMap:
    r"""Fill a random rectangle of each image with a constant or with noise.

    The rectangle covers a part $s$ of the image's area, uniform in ``scale``, with a
    ratio of height to width $r$, log-uniform in ``ratio``: its height is
    $\sqrt{s H W r}$ and its width $\sqrt{s H W / r}$, rounded, 1 or more. Of ten such
    draws the first that is smaller than the image in both directions counts; an image
    for which none is stays whole. The place is uniform among those inside the image.

    Args:
        probability: of a rectangle, in [0, 1].
        scale: the smallest and the largest part of the area, in [0, 1].
        ratio: the smallest and the largest ratio of height to width, finite, > 0.
        fill: the constant in units of the image, or ``"noise"``: each value is drawn
            anew, of ``uint8`` images from all 256, of float images from the standard
            normal distribution.
        images: selects leaves of the batch; those of an example have the same
            rectangle.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if the probability is not a number; when it is called, if images of
            another dtype are to be filled with noise.
        ValueError: if a number is out of range or an interval empty.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> erase = augmentations.random_erasing(1.0, scale=(0.25, 0.25), ratio=(1, 1))
        >>> batch = erase({"x": jnp.ones((1, 8, 8))}, jax.random.key(0))
        >>> print(batch["x"].sum())
        48.0

    References:
        Zhong et al., Random erasing data augmentation, 2020, algorithm 1,
        https://arxiv.org/abs/1708.04896. Differs from it in: as in torchvision, the
        ratio is log-uniform, attempts end, and noise of floats is normal.
    """
    check_probability(probability)
    check_intervals(scale, ratio)

    def erased(image: jax.Array, key: Key) -> jax.Array:
        k_chance, k_box, k_noise = jax.random.split(key, 3)
        limits = height_and_width(image)
        box, is_found = random_box(k_box, limits, scale, ratio, is_smaller=True)
        is_erased = chance(k_chance, probability) & is_found
        box = jax.tree.map(lambda edge: jnp.where(is_erased, edge, 0), box)
        return paste(box, _content(fill, image, k_noise), image)

    return image_map("random_erasing", erased, images)


def _content(fill: Scalar | Literal["noise"], image: jax.Array, key: Key) -> jax.Array:
    if not isinstance(fill, str):
        return filling(fill, image)
    numerics.check_choice("fill", fill, ("noise",))
    if image.dtype == jnp.uint8:
        return jax.random.bits(key, image.shape, jnp.uint8)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f'need images of uint8 or floats for fill="noise", got {image.dtype}'
        )
    return jax.random.normal(key, image.shape, image.dtype)
