"""CutMix: a box of each image comes from another image."""

from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.data.augmentations.boxes import Box, around, paste, random_pixel
from fngrad.data.augmentations.image_batches import (
    BatchMap,
    as_map,
    height_and_width,
    replaced,
    selected_images,
)
from fngrad.data.augmentations.mixed_labels import (
    Targets,
    check_mixing,
    mixed,
    random_weights,
    selected_labels,
)
from fngrad.data.dataset import num_examples
from fngrad.types import Batch, Key, Scalar, Selector


def cutmix(
    alpha: Scalar = 1.0,
    num_classes: int | None = None,
    *,
    targets: Targets = "soft",
    per_example: bool = True,
    images: Selector = "x",
    labels: Selector = "y",
) -> BatchMap:
    r"""Paste a box of another image into each image, and mix their labels by area.

    With a random permutation $\pi$ of the batch, $\lambda \sim \mathrm{Beta}(\alpha,
    \alpha)$ and images of shape (H, W), the box of example i has the sides
    $\lfloor H \sqrt{1 - \lambda} \rfloor$ and $\lfloor W \sqrt{1 - \lambda} \rfloor$
    around a uniform pixel, without what is outside of the image. It is filled with the
    same box of image $\pi(i)$, and of an area A

    $$y_i \leftarrow \lambda'_i y_i + (1 - \lambda'_i)\,y_{\pi(i)}, \qquad
      \lambda'_i = 1 - \frac{A}{H W} .$$

    Args:
        alpha: $\alpha$ > 0; 1 makes $\lambda$ uniform.
        num_classes, targets, labels: see `mixup`.
        per_example: whether each example has a box of its own, or the batch has one.
        images: selects leaves of the batch, of one size.

    Returns:
        A map ``(batch, key) -> batch``.

    Raises:
        TypeError: if ``alpha`` is not a number; when it is called, if labels are bools
            and ``targets`` is "soft".
        ValueError: if ``alpha`` or ``num_classes`` is not positive or ``targets``
            unknown; when it is called, if integer labels lack ``num_classes``, or the
            numbers of images and labels differ.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.data import augmentations
        >>> batch = {"x": jnp.zeros((2, 8, 8)).at[1].set(1.0), "y": jnp.array([0, 1])}
        >>> mixed = augmentations.cutmix(1.0, 2)(batch, jax.random.key(0))
        >>> bool(jnp.allclose(mixed["x"].mean((1, 2)), mixed["y"][:, 1]))
        True

    References:
        Yun et al., CutMix: regularization strategy to train strong classifiers with
        localizable features, 2019, section 3.1, https://arxiv.org/abs/1905.04899.
        Differs from the authors' code in: a box of odd sides has these sides, there
        each is one pixel shorter; and that code has one box per batch, as
        ``per_example=False``.
    """
    num_classes = check_mixing(alpha, targets, num_classes)

    def cut_and_mixed(batch: Batch, key: Key) -> Batch:
        leaves = selected_images(images, batch)
        answers = selected_labels(labels, batch)
        n = num_examples(leaves | answers)
        limits = height_and_width(next(iter(leaves.values()))[0])
        k_boxes, k_order = jax.random.split(key)
        order = jax.random.permutation(k_order, n)
        keys = jax.random.split(k_boxes, n if per_example else 1)
        boxes = jax.vmap(lambda k: _random_box(k, alpha, limits))(keys)
        boxes = jax.tree.map(lambda edge: jnp.broadcast_to(edge, (n,)), boxes)
        weight = 1 - boxes.area() / (limits[0] * limits[1])
        made: dict[str, Any] = {
            path: jax.vmap(paste)(boxes, numerics.rows(leaf, order), leaf)
            for path, leaf in leaves.items()
        }
        made |= mixed(answers, order, weight, targets, num_classes)
        return replaced(batch, made)

    return as_map("cutmix", cut_and_mixed)


def _random_box(key: Key, alpha: Scalar, limits: tuple[int, int]) -> Box:
    k_area, k_center = jax.random.split(key)
    weight = random_weights(k_area, alpha, ())
    sides = jnp.sqrt(1 - weight) * jnp.array(limits, weight.dtype)
    return around(random_pixel(k_center, limits), sides.astype(jnp.int32), limits)
