"""RandAugment: random operations of one strength."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.affine import (
    METHODS,
    Method,
    rotate,
    shear,
    translate,
)
from fngrad.data.augmentations.colors import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
)
from fngrad.data.augmentations.image_batches import WHITE, BatchMap, image_map
from fngrad.data.augmentations.tones import (
    adjust_sharpness,
    autocontrast,
    equalize,
    posterize,
    solarize,
)
from fngrad.types import Key, Scalar, Selector

Operation: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]  # (image, level)
_LARGEST = 10.0  # magnitude


def rand_augment(
    num_ops: int = 2,
    magnitude: Scalar = 9.0,
    operations: Mapping[str, Operation] | Sequence[Operation] | None = None,
    *,
    images: Selector = "x",
) -> BatchMap:
    r"""Apply random operations, N one after the other, to each image.

    Each is drawn uniformly from the operations, also repeatedly, and called as
    ``operation(image, level)`` with the level $\pm M / 10$, of a random sign.

    Args:
        num_ops: N >= 0, how many operations.
        magnitude: M in [0, 10]. torchvision counts to 30: its 9 is 3 here.
        operations: pure functions ``(image, level) -> image`` that keep shape and
            dtype; ``None`` stands for `rand_augment_operations`.
        images: selects leaves of the batch; for the operations of the paper, ``uint8``
            or floats in [0, 1], of one channel or three. All images take the time of
            all operations, since a batch computes each and selects.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if the magnitude is not a number.
        ValueError: if a number is out of range, or there are no operations; when it is
            called, if an operation changes shape or dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> known = augmentations.rand_augment_operations()
        >>> kinds = [known["rotate"], known["brightness"]]
        >>> augment = augmentations.rand_augment(2, 5.0, kinds)
        >>> batch = {"x": jnp.full((3, 8, 8, 3), 100, jnp.uint8)}
        >>> augment(batch, jax.random.key(0))["x"].shape
        (3, 8, 8, 3)

    References:
        Cubuk et al., RandAugment: practical automated data augmentation with a reduced
        search space, 2020, section 3 and figure 2, https://arxiv.org/abs/1909.13719.
    """
    num_ops = numerics.check_count("num_ops", num_ops, 0)
    numerics.check_number("magnitude", magnitude, 0.0, _LARGEST)
    if operations is None:
        operations = rand_augment_operations()
    is_named = isinstance(operations, Mapping)
    choices = list(operations.values() if is_named else operations)
    if not choices:
        raise ValueError(f"need one operation or more, got {operations=}")

    def augmented(image: jax.Array, key: Key) -> jax.Array:
        strength = numerics.hyper(magnitude) / _LARGEST

        def one(image: jax.Array, key: Key) -> tuple[jax.Array, None]:
            k_choice, k_sign = jax.random.split(key)
            which = jax.random.randint(k_choice, (), 0, len(choices), jnp.int32)
            level = jnp.where(jax.random.bernoulli(k_sign), strength, -strength)
            branches = [functools.partial(_applied, op, level) for op in choices]
            return jax.lax.switch(which, branches, image), None

        # A loop, so that the operations are compiled once.
        return jax.lax.scan(one, image, jax.random.split(key, num_ops))[0]

    return image_map("rand_augment", augmented, images)


def rand_augment_operations(
    *, fill: Scalar = 0.0, method: Method = "nearest"
) -> dict[str, Operation]:
    r"""Return the 14 operations of RandAugment by name.

    Of a level l in [-1, 1]:

    - ``identity``, ``autocontrast``, ``equalize`` do not depend on it;
    - ``rotate`` turns by $30\,l$ degrees, ``shear_x`` and ``shear_y`` shear by $0.3\,l$
      pixels per pixel, ``translate_x`` and ``translate_y`` move by $150 / 331\,l$ of
      the width or height;
    - ``brightness``, ``color`` (saturation), ``contrast``, ``sharpness`` have the
      factor $1 + 0.9\,l$;
    - ``posterize`` leaves $8 - 4\,|l|$ bits, rounded; ``solarize`` inverts values from
      $256\,(1 - |l|)$ of 255 on.

    Args:
        fill: value of pixels that come from outside, in units of the image.
        method: the value between pixels, see `rotate`.

    Raises:
        ValueError: if the method is unknown.

    Example:
        >>> from fngrad.data import augmentations
        >>> len(augmentations.rand_augment_operations())
        14

    References:
        Cubuk et al. 2020 (see `rand_augment`), with the ranges that torchvision has.
        Differs from it in: shears leave the center where it is, there the corner; moves
        are not cut to whole pixels; ``solarize`` inverts nothing at level 0, there 255.
    """
    numerics.check_choice("method", method, METHODS)
    sampling = {"method": method, "fill": fill}
    part = 150 / 331  # the largest translation, in the paper's images

    def along(axis: int, image: jax.Array, level: jax.Array) -> jax.Array:
        pixels = part * level * image.shape[axis]
        moves = {"down": pixels} if axis == 0 else {"right": pixels}
        return translate(image, **moves, **sampling)

    return {
        "identity": lambda image, level: image,
        "autocontrast": lambda image, level: autocontrast(image),
        "equalize": lambda image, level: equalize(image),
        "rotate": lambda image, level: rotate(image, 30 * level, **sampling),
        "shear_x": lambda image, level: shear(image, 0.3 * level, **sampling),
        "shear_y": lambda image, level: shear(image, 0.0, 0.3 * level, **sampling),
        "translate_x": functools.partial(along, 1),
        "translate_y": functools.partial(along, 0),
        "brightness": lambda image, level: adjust_brightness(image, 1 + 0.9 * level),
        "color": lambda image, level: adjust_saturation(image, 1 + 0.9 * level),
        "contrast": lambda image, level: adjust_contrast(image, 1 + 0.9 * level),
        "sharpness": lambda image, level: adjust_sharpness(image, 1 + 0.9 * level),
        "posterize": lambda image, level: posterize(image, 8 - 4 * abs(level)),
        "solarize": lambda image, level: solarize(image, _from(abs(level))),
    }


def _from(level: jax.Array) -> jax.Array:
    """Return the threshold of solarize: above 1 at level 0, so that nothing changes."""
    return (1 - level) * ((WHITE + 1) / WHITE)


def _applied(operation: Operation, level: jax.Array, image: jax.Array) -> jax.Array:
    made = operation(image, level)
    if made.shape != image.shape or made.dtype != image.dtype:
        raise ValueError(
            f"need an operation that keeps an image's shape and dtype, {image.shape} "
            f"{image.dtype}, got {made.shape} {made.dtype} from {operation!r}"
        )
    return made
