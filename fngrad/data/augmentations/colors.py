r"""Colors of one image: brightness, contrast, saturation, hue.

Values are in [0, 255] (``uint8``) or in [0, 1] (floats), and results are clipped to
that range. The *gray* of a pixel is $0.299 R + 0.587 G + 0.114 B$, or the mean of the
channels where there are not three. Brightness, contrast and saturation are blends
$f x + (1 - f)\,d$ of an image x and a degenerate one d, as in PIL's ``ImageEnhance``.
Differs from it in: integers are rounded once, at the end, and to the nearest.
"""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.image_batches import (
    from_fractions,
    over_channels,
    with_fractions,
)
from fngrad.types import Scalar

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def adjust_brightness(image: jax.Array, factor: Scalar) -> jax.Array:
    """Blend an image with black: return ``factor`` times its values.

    Args:
        image: shape ``(height, width, ...)``, ``uint8`` or floats in [0, 1].
        factor: >= 0; 0 gives black, 1 the image.

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.
        ValueError: if a Python number as factor is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[10, 200]], jnp.uint8)
        >>> print(augmentations.adjust_brightness(image, 1.5))
        [[ 15 255]]
    """
    numerics.check_number("factor", factor, low=0.0)
    image, x = with_fractions(image)
    return from_fractions(_factor(factor, x) * x, image)


def adjust_contrast(image: jax.Array, factor: Scalar) -> jax.Array:
    """Blend an image with the mean of its gray.

    Args:
        image: shape ``(height, width, ...)``, ``uint8`` or floats in [0, 1].
        factor: >= 0; 0 gives an even gray, 1 the image.

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.
        ValueError: if a Python number as factor is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> image = jnp.array([[0.25, 0.75]])
        >>> print(augmentations.adjust_contrast(image, 2.0))
        [[0. 1.]]
    """
    numerics.check_number("factor", factor, low=0.0)
    image, x = with_fractions(image)
    return from_fractions(blend(x, gray(x).mean(), factor), image)


def adjust_saturation(image: jax.Array, factor: Scalar) -> jax.Array:
    """Blend an image with its gray.

    Args:
        image: shape ``(height, width, 3)``, ``uint8`` or floats in [0, 1]. An image
            with one channel, or without channels, stays as it is.
        factor: >= 0; 0 gives a gray image, 1 the image.

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.
        ValueError: if there are two channels or more than three, or a Python number as
            factor is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> red = jnp.array([[[1.0, 0.0, 0.0]]])
        >>> print(augmentations.adjust_saturation(red, 0.0))
        [[[0.299 0.299 0.299]]]
    """
    numerics.check_number("factor", factor, low=0.0)
    image, x = with_fractions(image)
    if not _is_rgb(x):
        return from_fractions(x, image)
    return from_fractions(blend(x, over_channels(gray(x), x), factor), image)


def adjust_hue(image: jax.Array, turns: Scalar) -> jax.Array:
    r"""Turn the hues of an image by a part of the color circle.

    With $V = \max(R, G, B)$, the chroma $C = V - \min(R, G, B)$ and the hue
    $h \in [0, 6)$ of the HSV model, the new channels are

    $$V - C \max(0, \min(k_n, 4 - k_n, 1)), \qquad
      k_n = (n + h + 6 \cdot \texttt{turns}) \bmod 6, \quad n = 5, 3, 1 .$$

    Args:
        image: shape ``(height, width, 3)``, ``uint8`` or floats in [0, 1]. An image
            with one channel, or without channels, stays as it is.
        turns: 1/3 makes red green, -1/3 blue; whole numbers change nothing.

    Raises:
        TypeError: if the dtype is neither ``uint8`` nor a float.
        ValueError: if there are two channels or more than three.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> red = jnp.array([[[255, 0, 0]]], jnp.uint8)
        >>> print(jax.jit(augmentations.adjust_hue)(red, 1 / 3))
        [[[  0 255   0]]]
    """
    image, x = with_fractions(image)
    if not _is_rgb(x):
        return from_fractions(x, image)
    value, chroma, hue = _value_chroma_hue(x)
    turned = hue + 6 * _factor(turns, x)
    made = [_channel(n, value, chroma, turned) for n in (5, 3, 1)]
    return from_fractions(jnp.stack(made, axis=-1), image)


def blend(x: jax.Array, degenerate: jax.Array, factor: Scalar) -> jax.Array:
    """Return factor x + (1 - factor) degenerate."""
    f = _factor(factor, x)
    return f * x + (1 - f) * degenerate


def gray(x: jax.Array) -> jax.Array:
    """Return the gray of each pixel, shape ``(height, width)``."""
    if x.ndim == 2:
        return x
    if x.shape[-1] != 3:
        return x.mean(-1)
    return sum(w * x[..., i] for i, w in enumerate(_LUMA))  # type: ignore[return-value]


def _factor(factor: Scalar, x: jax.Array) -> jax.Array:
    return numerics.hyper(factor).astype(x.dtype)


def _is_rgb(x: jax.Array) -> bool:
    """Return whether an image has three channels, else one or none.

    Raises:
        ValueError: if it has another number.
    """
    if x.ndim == 2 or x.shape[-1] == 1:
        return False
    if x.shape[-1] != 3:
        raise ValueError(
            f"need an image with 3 channels or 1 for saturation and hue, got shape "
            f"{x.shape}"
        )
    return True


def _value_chroma_hue(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return V, C and h of red, green and blue; the hue of a gray pixel is 0."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    value = x.max(-1)
    chroma = value - x.min(-1)
    is_gray = chroma <= 0
    by = jnp.where(is_gray, 1, chroma)
    of_blue = jnp.where(value == g, (b - r) / by + 2, (r - g) / by + 4)
    hue = jnp.where(value == r, (g - b) / by, of_blue)
    return value, chroma, jnp.where(is_gray, 0, hue)


def _channel(n: int, value: jax.Array, chroma: jax.Array, hue: jax.Array) -> jax.Array:
    k = jnp.mod(n + hue, 6)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
