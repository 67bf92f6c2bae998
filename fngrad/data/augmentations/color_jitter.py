"""Color jitter: random brightness, contrast, saturation and hue."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.colors import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)
from fngrad.data.augmentations.image_batches import (
    BatchMap,
    as_map,
    check_colors,
    from_fractions,
    image_map,
    with_fractions,
)
from fngrad.types import Batch, Key, Scalar, Selector

_Change = Callable[[jax.Array, Key], jax.Array]


def color_jitter(
    brightness: Scalar | None = None,
    contrast: Scalar | None = None,
    saturation: Scalar | None = None,
    hue: Scalar | None = None,
    *,
    images: Selector = "x",
) -> BatchMap:
    r"""Change brightness, contrast, saturation and hue of each image at random.

    Each image is changed by factors of its own, which for a strength b are uniform in
    $[\max(0, 1 - b), 1 + b]$; the turn of the hue is uniform in [-hue, hue]. The order
    of the changes is drawn for the whole batch.

    Args:
        brightness, contrast, saturation: strengths, >= 0; ``None`` for no such change.
        hue: the largest turn, in parts of the color circle, in [0, 0.5].
        images: selects leaves of the batch, ``uint8`` or floats in [0, 1], with three
            channels for saturation and hue (which leave images of one channel as they
            are). Images that are standardized have to be changed before that.

    Returns:
        A map ``(batch, key) -> batch``; see `adjust_brightness`, `adjust_contrast`,
        `adjust_saturation` and `adjust_hue`.

    Raises:
        TypeError: if a strength is not a number; when it is called, if images are
            neither ``uint8`` nor floats.
        ValueError: if a strength is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> batch = {"x": jnp.full((3, 4, 4, 3), 128, jnp.uint8)}
        >>> jitter = augmentations.color_jitter(0.4, 0.4, 0.4, 0.1)
        >>> images = jitter(batch, jax.random.key(0))["x"]
        >>> images.dtype, len(jnp.unique(images))
        (dtype('uint8'), 3)

    References:
        Krizhevsky et al., ImageNet classification with deep convolutional neural
        networks, 2012, section 4.1, for the idea. As torchvision's ``ColorJitter``;
        differs from it in: the order is one per batch, not one per image, and integers
        are rounded once, after all changes.
    """
    changes: list[_Change] = []
    strengths = {"brightness": brightness, "contrast": contrast}
    strengths["saturation"] = saturation
    adjust = (adjust_brightness, adjust_contrast, adjust_saturation)
    for adjusted, (name, strength) in zip(adjust, strengths.items(), strict=True):
        numerics.check_number(name, strength, low=0.0, optional=True)
        if strength is not None:
            changes.append(functools.partial(_by_factor, adjusted, strength))
    numerics.check_number("hue", hue, 0.0, 0.5, optional=True)
    if hue is not None:
        changes.append(functools.partial(_by_turn, hue))

    def jittered(batch: Batch, key: Key) -> Batch:
        k_order, k_images = jax.random.split(key)
        order = jax.random.permutation(k_order, len(changes))

        def of_image(image: jax.Array, key: Key) -> jax.Array:
            return _changed(image, key, changes, order)

        return image_map("color_jitter", of_image, images, check_colors)(
            batch, k_images
        )

    return as_map("color_jitter", jittered)


def _changed(
    image: jax.Array, key: Key, changes: list[_Change], order: jax.Array
) -> jax.Array:
    """Return an image after all changes, each with its own key, in this order."""
    keys = jax.random.split(key, len(changes))
    image, x = with_fractions(image)
    branches = [
        functools.partial(lambda change, k, x: change(x, k), change, k)
        for change, k in zip(changes, keys, strict=True)
    ]

    def change(x: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.switch(which, branches, x), None

    if branches:  # a loop, so that each change is compiled once
        x = jax.lax.scan(change, x, order)[0]
    return from_fractions(x, image)


def _by_factor(
    adjusted: Callable[[jax.Array, Scalar], jax.Array],
    strength: Scalar,
    image: jax.Array,
    key: Key,
) -> jax.Array:
    b = numerics.hyper(strength)
    low = jnp.maximum(0, 1 - b)
    return adjusted(image, jax.random.uniform(key, minval=low, maxval=1 + b))


def _by_turn(hue: Scalar, image: jax.Array, key: Key) -> jax.Array:
    most = numerics.hyper(hue)
    return adjust_hue(image, jax.random.uniform(key, minval=-most, maxval=most))
