"""Random flips."""

import jax
import jax.numpy as jnp

from fngrad.data.augmentations.image_batches import (
    BatchMap,
    chance,
    check_probability,
    image_map,
)
from fngrad.types import Key, Scalar, Selector


def horizontal_flip(probability: Scalar = 0.5, *, images: Selector = "x") -> BatchMap:
    """Exchange left and right of each image with a probability.

    Args:
        probability: in [0, 1].
        images: selects leaves of the batch; those of an example are flipped together.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if the probability is not a number.
        ValueError: if it is outside [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> batch = {"x": jnp.arange(4.0).reshape(1, 2, 2)}
        >>> flip = augmentations.horizontal_flip(1.0)
        >>> print(flip(batch, jax.random.key(0))["x"][0])
        [[1. 0.]
         [3. 2.]]
    """
    return _flip("horizontal_flip", 1, probability, images)


def vertical_flip(probability: Scalar = 0.5, *, images: Selector = "x") -> BatchMap:
    """Exchange top and bottom of each image with a probability.

    Args:
        probability, images: see `horizontal_flip`.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if the probability is not a number.
        ValueError: if it is outside [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> batch = {"x": jnp.arange(4.0).reshape(1, 2, 2)}
        >>> flip = augmentations.vertical_flip(1.0)
        >>> print(flip(batch, jax.random.key(0))["x"][0])
        [[2. 3.]
         [0. 1.]]
    """
    return _flip("vertical_flip", 0, probability, images)


def _flip(name: str, axis: int, probability: Scalar, images: Selector) -> BatchMap:
    check_probability(probability)

    def flipped(image: jax.Array, key: Key) -> jax.Array:
        return jnp.where(chance(key, probability), jnp.flip(image, axis), image)

    return image_map(name, flipped, images)
