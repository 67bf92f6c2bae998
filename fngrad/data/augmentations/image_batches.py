"""From a function of one image to a map over batches: leaves, keys, values.

An *image* has shape ``(height, width)`` or ``(height, width, channels)``. The values
of a ``uint8`` image are in [0, 255]; those of a float image are in [0, 1] where a
function says so, else any.
"""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.data.dataset import num_examples
from fngrad.tree.dtypes import wide_dtype
from fngrad.tree.selection import check_mask, select
from fngrad.types import Batch, Key, Path, Scalar, Selector

BatchMap = Callable[[Batch, Key], Batch]  # (batch, key) -> batch
ImageMap = Callable[[jax.Array, Key], jax.Array]  # (image, key) -> image
WHITE = 255  # the largest value of uint8 images


def image_map(
    name: str,
    image_fn: ImageMap,
    images: Selector,
    check: Callable[[str, jax.Array], None] | None = None,
) -> BatchMap:
    """Return the map that applies a function to each image of a batch.

    Image i of all leaves that are selected gets the same key.

    Args:
        name: see `as_map`.
        image_fn: a pure function ``(image, key) -> image``.
        images: selects the leaves of the batch.
        check: of a leaf's name for messages and its array.
    """

    def augmented(batch: Batch, key: Key) -> Batch:
        leaves = selected_images(images, batch)
        for path, leaf in leaves.items():
            if check is not None:
                check(f"images at {path!r}", leaf)
        keys = jax.random.split(key, num_examples(leaves))
        made = {path: jax.vmap(image_fn)(leaf, keys) for path, leaf in leaves.items()}
        return replaced(batch, made)

    return as_map(name, augmented)


def as_map(name: str, fn: BatchMap) -> BatchMap:
    """Return a map that is one program, also where nothing is jitted.

    Args:
        name: what the map is called in the `repr` of a dataset.
        fn: a pure function ``(batch, key) -> batch``; it gets a typed key.
    """
    program = jax.jit(fn)

    def mapped(batch: Batch, key: Key) -> Batch:
        return program(batch, numerics.key(key))

    mapped.__name__ = mapped.__qualname__ = name
    return mapped


def selected_images(images: Selector, batch: Batch) -> dict[Path, jax.Array]:
    """Return the images of a batch by path, shape ``(n, height, width, ...)``.

    Raises:
        TypeError: if ``images`` is not a selector.
        ValueError: if it selects no leaf, or leaves that are not images of one size.
    """
    found = selected_leaves("images", images, batch)
    for path, leaf in found.items():
        if leaf.ndim not in (3, 4):
            raise ValueError(
                "need images of shape (n, height, width) or (n, height, width, "
                f"channels), got shape {leaf.shape} at {path!r}; flat images have to "
                "be reshaped first"
            )
    sizes = {path: leaf.shape[:3] for path, leaf in found.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"need images of one number and size, got {sizes}")
    return found


def selected_leaves(name: str, selector: Selector, batch: Batch) -> dict[Path, Any]:
    """Return the leaves of a batch that are selected, by path.

    Raises:
        TypeError: if the argument of this name is not a selector.
        ValueError: if it selects no leaf.
    """
    check_mask(selector, batch)
    chosen = tree.leaf_paths(select(selector, batch))
    leaves = tree.leaf_paths(batch)
    found = {path: jnp.asarray(leaves[path]) for path, is_in in chosen.items() if is_in}
    if not found:
        raise ValueError(
            f"need {name} that select a leaf, got {selector!r} for the leaves "
            f"{list(leaves)}"
        )
    return found


def replaced(batch: Batch, made: dict[Path, Any]) -> Batch:
    """Return a batch with other leaves, or trees in the place of leaves, by path."""
    return tree.map_with_path(lambda path, leaf: made.get(path, leaf), batch)


def height_and_width(image: jax.Array) -> tuple[int, int]:
    """Return the first two axes of an image."""
    height, width = image.shape[:2]
    return height, width


def check_colors(name: str, image: jax.Array) -> None:
    """Raise unless an image has values with a known range.

    Raises:
        TypeError: if its dtype is neither ``uint8`` nor a float.
    """
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f"need {name} of dtype uint8, in [0, 255], or a float, in [0, 1], "
            f"got {image.dtype}"
        )


def with_fractions(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return an image, and its values as floats in [0, 1], in at least float32.

    Raises:
        TypeError: if its dtype is neither ``uint8`` nor a float.
    """
    image = jnp.asarray(image)
    check_colors("an image", image)
    if image.dtype == jnp.uint8:
        return image, image.astype(jnp.float32) / WHITE
    return image, jnp.clip(image.astype(wide_dtype(image.dtype)), 0, 1)


def from_fractions(values: jax.Array, like: jax.Array) -> jax.Array:
    """Return values in [0, 1], which are clipped, in the dtype of an image."""
    values = jnp.clip(values, 0, 1)
    return rounded(values * WHITE if like.dtype == jnp.uint8 else values, like.dtype)


def as_wide(image: jax.Array) -> jax.Array:
    """Return an image in a float dtype for arithmetic, at least float32."""
    is_float = jnp.issubdtype(image.dtype, jnp.inexact)
    return image.astype(wide_dtype(image.dtype) if is_float else jnp.float32)


def rounded(values: jax.Array, dtype: Any) -> jax.Array:
    """Return floats in a dtype; integers and bools are the nearest."""
    is_float = jnp.issubdtype(dtype, jnp.inexact)
    return (values if is_float else jnp.round(values)).astype(dtype)


def mix(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """Return weight a + (1 - weight) b in the dtype of a, weight per example.

    Args:
        a, b: shape ``(n, ...)``.
        weight: shape ``(n,)`` or ``()``, in [0, 1].
    """
    x, y = as_wide(a), as_wide(b)
    weight = weight.reshape(weight.shape + (1,) * (a.ndim - weight.ndim))
    mean = weight.astype(x.dtype) * x + (1 - weight).astype(x.dtype) * y
    return rounded(mean, a.dtype)


def over_channels(values: jax.Array, image: jax.Array) -> jax.Array:
    """Return values of shape ``(height, width)`` with the axes of an image."""
    return values.reshape(values.shape + (1,) * (image.ndim - values.ndim))


def filling(fill: Scalar, image: jax.Array) -> jax.Array:
    """Return a value that fills a part of an image, shape ().

    Raises:
        ValueError: if a Python number is not one of the dtype's integers.
    """
    dtype = image.dtype
    if isinstance(fill, numbers.Real) and jnp.issubdtype(dtype, jnp.integer):
        bounds = jnp.iinfo(dtype)
        if not (float(fill).is_integer() and bounds.min <= fill <= bounds.max):
            raise ValueError(
                f"need an integer fill in [{bounds.min}, {bounds.max}] for images of "
                f"dtype {dtype}, got {fill=}"
            )
    return rounded(numerics.hyper(fill), dtype)


def check_probability(probability: Scalar) -> None:
    """Raise unless a Python number is in [0, 1].

    Raises:
        TypeError: if it has another type.
        ValueError: if it is out of range.
    """
    numerics.check_number("probability", probability, 0.0, 1.0)


def chance(key: Key, probability: Scalar) -> jax.Array:
    """Return true with this probability, shape ()."""
    return jax.random.bernoulli(key, numerics.hyper(probability))
