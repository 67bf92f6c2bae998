"""Tones of one image: posterize, solarize, equalize, sharpen.

Values are in [0, 255] (``uint8``) or in [0, 1] (floats). The functions are those of
PIL's ``ImageOps`` and ``ImageEnhance``, on each channel by itself.
"""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.colors import blend
from fngrad.data.augmentations.image_batches import (
    WHITE,
    from_fractions,
    rounded,
    with_fractions,
)
from fngrad.types import Scalar


def posterize(image: jax.Array, bits: Scalar) -> jax.Array:
    r"""Keep the first bits of each value: $2^\texttt{bits}$ levels are left.

    Args:
        image: shape ``(height, width, ...)``, ``uint8`` or floats in [0, 1].
        bits: 0 to 8; rounded to an integer.

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.
        ValueError: if a Python number of bits is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[63, 64, 255]], jnp.uint8)
        >>> print(augmentations.posterize(image, 2))
        [[  0  64 192]]
    """
    numerics.check_number("bits", bits, 0.0, 8.0)
    image, x = with_fractions(image)
    levels = jnp.exp2(jnp.round(numerics.hyper(bits))).astype(x.dtype)
    if image.dtype == jnp.uint8:
        width = (WHITE + 1) / levels
        return rounded(jnp.floor(image.astype(x.dtype) / width) * width, jnp.uint8)
    kept = jnp.minimum(jnp.floor(x * levels), levels - 1) / levels
    return from_fractions(kept, image)


def solarize(image: jax.Array, threshold: Scalar) -> jax.Array:
    """Invert the values from a threshold on: v becomes 1 - v, or 255 - v.

    Args:
        image: shape ``(height, width, ...)``, ``uint8`` or floats in [0, 1].
        threshold: a part of the largest value; above 1 nothing is inverted.

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[100, 200]], jnp.uint8)
        >>> print(augmentations.solarize(image, 0.5))
        [[100  55]]
    """
    image, x = with_fractions(image)
    limit = numerics.hyper(threshold).astype(x.dtype)
    return from_fractions(jnp.where(x < limit, x, 1 - x), image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretch each channel so that its smallest value is 0 and its largest 1, or 255.

    A channel of one value stays as it is.

    Args:
        image: shape ``(height, width, ...)``, ``uint8`` or floats in [0, 1].

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[0.25, 0.375, 0.5]])
        >>> print(augmentations.autocontrast(image))
        [[0.  0.5 1. ]]
    """
    image, x = with_fractions(image)
    low, high = (f(x, axis=(0, 1), keepdims=True) for f in (jnp.min, jnp.max))
    is_even = high <= low
    span = jnp.where(is_even, 1, high - low)
    return from_fractions(jnp.where(is_even, x, (x - low) / span), image)


def equalize(image: jax.Array) -> jax.Array:
    r"""Make the histogram of each channel as even as the values allow.

    With the numbers $H_v$ of pixels of value v in 0, ..., 255, and their sum $S$
    without those of the largest value, $q = \lfloor S / 255 \rfloor$,

    $$v \leftarrow \min\Bigl(255, \Bigl\lfloor \Bigl(\lfloor q / 2 \rfloor +
      \sum_{u < v} H_u\Bigr) / q \Bigr\rfloor\Bigr) .$$

    A channel with $q = 0$ stays as it is, for instance one with fewer than 256 pixels.

    Args:
        image: shape ``(height, width, ...)``, ``uint8`` or floats in [0, 1], which are
            rounded to 256 levels where the channel changes.

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = (jnp.arange(1024).reshape(32, 32) // 16).astype(jnp.uint8)
        >>> print(jax.jit(augmentations.equalize)(image)[::8, 0])
        [  0  85 171 255]
    """
    image, x = with_fractions(image)
    flat = x.reshape(*x.shape[:2], -1)
    channels = [_equalized(flat[..., i]) for i in range(flat.shape[-1])]
    return from_fractions(jnp.stack(channels, axis=-1).reshape(x.shape), image)


def _equalized(x: jax.Array) -> jax.Array:
    """Return one channel, in fractions, with an even histogram."""
    values = jnp.round(x * WHITE).astype(jnp.int32)
    counts = jnp.zeros(WHITE + 1, jnp.int32).at[values].add(1)
    quantum = (x.size - counts[values.max()]) // WHITE
    is_kept = quantum <= 0
    quantum = jnp.where(is_kept, 1, quantum)
    before = jnp.cumsum(counts, dtype=jnp.int32) - counts
    table = jnp.minimum((quantum // 2 + before) // quantum, WHITE)
    return jnp.where(is_kept, x, table[values].astype(x.dtype) / WHITE)


def adjust_sharpness(image: jax.Array, factor: Scalar) -> jax.Array:
    """Blend an image with a smooth one.

    In the smooth image a pixel is the mean of its 3 x 3 neighborhood, with weight 5 of
    13 for itself; pixels at the edge stay.

    Args:
        image: shape ``(height, width, ...)``, ``uint8`` or floats in [0, 1].
        factor: >= 0; 0 gives the smooth image, 1 the image, 2 a sharper one.

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.
        ValueError: if a Python number as factor is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.zeros((3, 3), jnp.uint8).at[1, 1].set(130)
        >>> print(augmentations.adjust_sharpness(image, 0.0)[1])
        [ 0 50  0]
    """
    numerics.check_number("factor", factor, low=0.0)
    image, x = with_fractions(image)
    height, width = x.shape[:2]
    if min(height, width) < 3:
        return from_fractions(x, image)
    inner = x[1:-1, 1:-1]
    around = sum(
        x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)
    )
    smooth = x.at[1:-1, 1:-1].set((around + 4 * inner) / 13)
    return from_fractions(blend(x, smooth, factor), image)
