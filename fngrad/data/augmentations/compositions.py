"""Maps one after the other, one of several, and maps of a function of one image."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.data.augmentations.image_batches import (
    BatchMap,
    ImageMap,
    as_map,
    image_map,
)
from fngrad.data.maps import call_map, check_map, map_keys
from fngrad.types import Batch, Key, Selector


def per_image(image_fn: ImageMap, *, images: Selector = "x") -> BatchMap:
    """Apply a function to each image of a batch, each with a key of its own.

    Args:
        image_fn: a pure function ``(image, key) -> image`` of an image of shape
            ``(height, width)`` or ``(height, width, channels)``.
        images: selects leaves of the batch, of one size; those of an example get the
            same key.

    Returns:
        A map ``(batch, key) -> batch``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> def turned(image, key):
        ...     degrees = jax.random.uniform(key, minval=-15.0, maxval=15.0)
        ...     return augmentations.rotate(image, degrees)
        >>> turn = augmentations.per_image(turned)
        >>> turn({"x": jnp.ones((4, 8, 8, 3))}, jax.random.key(0))["x"].shape
        (4, 8, 8, 3)
    """
    return image_map(getattr(image_fn, "__name__", "per_image"), image_fn, images)


def serial(*maps: Callable[..., Batch]) -> BatchMap:
    """Apply maps one after the other, as `fngrad.data.Dataset.map` does.

    ``data.map(serial(f, g))`` has the batches of ``data.map(f).map(g)``.

    Args:
        maps: functions ``fn(batch)`` or ``fn(batch, key)``. If several take a key, it
            is split among them.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if a map has neither form.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> augment = augmentations.serial(
        ...     augmentations.random_crop(padding=2), augmentations.horizontal_flip()
        ... )
        >>> augment({"x": jnp.ones((4, 8, 8, 1))}, jax.random.key(0))["x"].shape
        (4, 8, 8, 1)
    """
    for fn in maps:
        check_map(fn)

    def applied(batch: Batch, key: Key) -> Batch:
        keys = map_keys(maps, key)
        for fn in maps:
            batch = call_map(fn, batch, keys)
        return batch

    return as_map("serial", applied)


def one_of(
    *maps: Callable[..., Batch],
    probabilities: Sequence[float] | jax.Array | None = None,
) -> BatchMap:
    """Apply one of several maps, drawn anew for each batch.

    The program computes only that one, except under `jax.vmap`.

    Args:
        maps: functions ``fn(batch)`` or ``fn(batch, key)``, whose batches have the same
            structure, shapes and dtypes.
        probabilities: of the maps, >= 0; they are divided by their sum. ``None`` stands
            for equal ones.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if a map has neither form, or a probability is not a number.
        ValueError: if there are no maps, there is another number of probabilities, or
            one is negative or NaN; when it is called, if the maps' batches differ.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> hidden = augmentations.one_of(
        ...     augmentations.cutout(4), augmentations.random_erasing(1.0)
        ... )
        >>> hidden({"x": jnp.ones((4, 8, 8, 1))}, jax.random.key(0))["x"].shape
        (4, 8, 8, 1)
    """
    for fn in maps:
        check_map(fn)
    weights = [1.0] * len(maps) if probabilities is None else probabilities
    if not maps or len(weights) != len(maps):
        raise ValueError(
            f"need maps and as many probabilities, got {len(maps)} maps and "
            f"{len(weights)} probabilities"
        )
    for i, weight in enumerate(weights):
        numerics.check_number(f"probabilities[{i}]", weight, low=0.0)

    def chosen(batch: Batch, key: Key) -> Batch:
        k_choice, k_map = jax.random.split(key)
        logits = jnp.log(jnp.asarray(weights, jnp.result_type(float)))
        which = jax.random.categorical(k_choice, logits)
        branches = [_with_key(fn) for fn in maps]
        _check_alike(branches, batch, k_map)
        return jax.lax.switch(which, branches, batch, k_map)

    return as_map("one_of", chosen)


def _with_key(fn: Callable[..., Batch]) -> Callable[[Batch, Key], Batch]:
    def called(batch: Batch, key: Key) -> Any:
        return tree.strong(call_map(fn, batch, iter([key])))

    return called


def _check_alike(maps: list[BatchMap], batch: Batch, key: Key) -> None:
    first, *others = (jax.eval_shape(fn, batch, key) for fn in maps)
    for i, other in enumerate(others, 1):
        if difference := tree.mismatch(first, other):
            raise ValueError(
                f"need maps whose batches are alike, got from number {i}: {difference}"
            )
