"""Random crops of padded images."""

from typing import Literal

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.image_batches import BatchMap, filling, image_map
from fngrad.types import Key, Scalar, Selector

PaddingMode = Literal["constant", "edge", "reflect", "symmetric"]
_MODES = ("constant", "edge", "reflect", "symmetric")


def random_crop(
    size: int | tuple[int, int] | None = None,
    *,
    padding: int | tuple[int, int] = 0,
    padding_mode: PaddingMode = "constant",
    fill: Scalar = 0.0,
    images: Selector = "x",
) -> BatchMap:
    r"""Cut a window at a random place out of each image, after padding.

    With images of shape (H, W), padding (p, q) and size (h, w) the window's corner is
    uniform over $\{0, \dots, H + 2p - h\} \times \{0, \dots, W + 2q - w\}$.

    Args:
        size: (height, width) of the window in pixels, or one number for both; ``None``
            keeps the image's.
        padding: pixels on each side, (vertical, horizontal) or one number for both.
        padding_mode: what the padding is made of, as for `numpy.pad`: ``"constant"``,
            ``"edge"``, ``"reflect"`` (the edge is not repeated) or ``"symmetric"``.
        fill: value of constant padding, in units of the image.
        images: selects leaves of the batch, of one size; the windows of an example are
            at the same place in all of them.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        ValueError: if a size is not positive, a padding is negative, or the mode is
            unknown; when it is called, if the window is larger than a padded image, or
            reflection needs more pixels than there are.

    Example:
        >>> import fngrad as fg
        >>> data = fg.data.from_arrays(fg.data.digits(images=True).train, 64)
        >>> data = data.map(fg.data.augmentations.random_crop(padding=1))
        >>> data.batch(0)["x"].shape
        (64, 8, 8, 1)

    References:
        He et al., Deep residual learning for image recognition, 2016, section 4.2,
        https://arxiv.org/abs/1512.03385.
    """
    numerics.check_choice("padding_mode", padding_mode, _MODES)
    pads = pair_of("padding", padding, low=0)
    sizes = None if size is None else pair_of("size", size, low=1)

    def cropped(image: jax.Array, key: Key) -> jax.Array:
        padded = _padded(image, pads, padding_mode, fill)
        windows = image.shape[:2] if sizes is None else sizes
        room = [n - m for n, m in zip(padded.shape, windows, strict=False)]
        if min(room) < 0:
            raise ValueError(
                f"need a window of at most the padded images' {padded.shape[:2]}, got "
                f"size={windows}"
            )
        limits = jnp.array(room, jnp.int32) + 1
        corner = jax.random.randint(key, (2,), 0, limits, jnp.int32)
        start = (corner[0], corner[1], *[jnp.int32(0)] * (image.ndim - 2))
        return jax.lax.dynamic_slice(padded, start, (*windows, *image.shape[2:]))

    return image_map("random_crop", cropped, images)


def pair_of(name: str, value: int | tuple[int, int], low: int) -> tuple[int, int]:
    """Return a (vertical, horizontal) number of pixels, given as one or two.

    Raises:
        ValueError: if there is another number of them, or one is below ``low``.
    """
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"need {name} as one int or two, got {value!r}")
    vertical, horizontal = (numerics.check_count(name, n, low) for n in pair)
    return vertical, horizontal


def _padded(
    image: jax.Array, pads: tuple[int, int], mode: PaddingMode, fill: Scalar
) -> jax.Array:
    if pads == (0, 0):
        return image
    widths = [(pad, pad) for pad in pads] + [(0, 0)] * (image.ndim - 2)
    if mode == "constant":
        return jnp.pad(image, widths, constant_values=filling(fill, image))
    most = [n - (mode == "reflect") for n in image.shape[:2]]
    if mode != "edge" and any(p > m for p, m in zip(pads, most, strict=True)):
        raise ValueError(
            f"need padding of at most {tuple(most)} pixels with "
            f"padding_mode={mode!r} and images of {image.shape[:2]}, got padding={pads}"
        )
    return jnp.pad(image, widths, mode=mode)
