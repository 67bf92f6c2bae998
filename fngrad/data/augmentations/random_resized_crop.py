"""Random crops that are resized to one size."""

import jax
import jax.numpy as jnp

from fngrad.data.augmentations.boxes import Box, check_intervals, random_box
from fngrad.data.augmentations.image_batches import (
    BatchMap,
    as_wide,
    height_and_width,
    image_map,
    rounded,
)
from fngrad.data.augmentations.random_crop import pair_of
from fngrad.types import Key, Selector


def random_resized_crop(
    size: int | tuple[int, int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    images: Selector = "x",
) -> BatchMap:
    r"""Cut a random rectangle out of each image, and resize it.

    The rectangle covers a part $s$ of the image's area, uniform in ``scale``, with a
    ratio of height to width $r$, log-uniform in ``ratio``, as in `random_erasing`, at a
    uniform place inside the image. If none of ten draws fits into the image, it is the
    largest one in the center whose ratio is in ``ratio``. Of a side of c pixels
    that becomes one of n pixels, the weight of pixel j in pixel i is proportional to

    $$\max\Bigl(0, 1 - \frac{|j + \tfrac12 - (i + \tfrac12)\,c / n|}{\max(1, c / n)}
      \Bigr)$$

    which is bilinear interpolation, and a mean over the pixels where it shrinks.

    Args:
        size: (height, width) of the results in pixels, or one number for both.
        scale: the smallest and the largest part of the area, in [0, 1].
        ratio: the smallest and the largest ratio of height to width, finite, > 0.
        images: selects leaves of the batch; the rectangles of an example are at the
            same place in all of them.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        ValueError: if a number is out of range or an interval empty.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> crop = augmentations.random_resized_crop(8)
        >>> crop({"x": jnp.ones((4, 20, 30, 3))}, jax.random.key(0))["x"].shape
        (4, 8, 8, 3)

    References:
        Szegedy et al., Going deeper with convolutions, 2015, section 6,
        https://arxiv.org/abs/1409.4842. As torchvision's ``RandomResizedCrop`` with
        antialiasing; differs from it in: ``ratio`` is height to width, which makes no
        difference for the default, and a rectangle has one pixel or more.
    """
    sizes = pair_of("size", size, low=1)
    check_intervals(scale, ratio)

    def cropped(image: jax.Array, key: Key) -> jax.Array:
        limits = height_and_width(image)
        box, is_found = random_box(key, limits, scale, ratio, is_smaller=False)
        whole = _central_box(limits, ratio)
        box = jax.tree.map(lambda a, b: jnp.where(is_found, a, b), box, whole)
        return _resized(image, box, sizes)

    return image_map("random_resized_crop", cropped, images)


def _central_box(limits: tuple[int, int], ratio: tuple[float, float]) -> Box:
    """Return the largest box in the center with a ratio in an interval."""
    height, width = limits
    tall = min(height, max(1, round(width * ratio[1])))
    wide = min(width, max(1, round(height / ratio[0])))
    top, left = (height - tall) // 2, (width - wide) // 2
    edges = (top, top + tall, left, left + wide)
    return Box(*(jnp.int32(edge) for edge in edges))


def _resized(image: jax.Array, box: Box, sizes: tuple[int, int]) -> jax.Array:
    wide = as_wide(image)
    down = _weights(box.top, box.bottom, image.shape[0], sizes[0]).astype(wide.dtype)
    across = _weights(box.left, box.right, image.shape[1], sizes[1]).astype(wide.dtype)
    rows = jnp.tensordot(down, wide, 1, precision="highest")  # TPUs would round to bf16
    both = jnp.tensordot(across, rows, ((1,), (1,)), precision="highest")
    return rounded(jnp.swapaxes(both, 0, 1), image.dtype)


def _weights(start: jax.Array, end: jax.Array, length: int, size: int) -> jax.Array:
    """Return the weight of each old pixel of a side in each new one, (size, length)."""
    dtype = jnp.result_type(float)
    step = (end - start).astype(dtype) / size
    centers = start.astype(dtype) + (jnp.arange(size, dtype=dtype) + 0.5) * step
    pixels = jnp.arange(length, dtype=jnp.int32)
    distance = (pixels.astype(dtype) + 0.5)[None, :] - centers[:, None]
    weights = jnp.maximum(0, 1 - jnp.abs(distance) / jnp.maximum(1, step))
    is_inside = ((pixels >= start) & (pixels < end))[None, :]
    weights = jnp.where(is_inside, weights, 0)
    return weights / weights.sum(1, keepdims=True)
