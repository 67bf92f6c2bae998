"""Mixup: means of two examples and of their labels."""

from typing import Any

import jax

import fngrad.numerics as numerics
from fngrad.data.augmentations.image_batches import (
    BatchMap,
    as_map,
    mix,
    replaced,
    selected_leaves,
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


def mixup(
    alpha: Scalar = 0.2,
    num_classes: int | None = None,
    *,
    targets: Targets = "soft",
    per_example: bool = True,
    images: Selector = "x",
    labels: Selector = "y",
) -> BatchMap:
    r"""Replace each example and its label by a mean of two.

    With a random permutation $\pi$ of the batch and
    $\lambda_i \sim \mathrm{Beta}(\alpha, \alpha)$

    $$x_i \leftarrow \lambda_i x_i + (1 - \lambda_i)\,x_{\pi(i)}, \qquad
      y_i \leftarrow \lambda_i y_i + (1 - \lambda_i)\,y_{\pi(i)}$$

    Labels that are integers become probabilities of the classes, for
    `fngrad.losses.softmax_cross_entropy`, whose ``label_smoothing`` smooths them.

    Args:
        alpha: $\alpha$ > 0; 1 makes $\lambda$ uniform, a small value makes it nearly
            0 or 1.
        num_classes: number of classes, for integer labels; a label outside
            [0, num_classes) becomes NaN.
        targets: ``"soft"`` for the mean of the labels, ``"pairs"`` for `MixedLabels` in
            the place of the labels: $y_i$, $y_{\pi(i)}$ and $\lambda_i$.
        per_example: whether each example has a $\lambda$ of its own, or the batch has
            one.
        images: selects leaves of the batch, of any shape ``(n, ...)``; integers are
            rounded.
        labels: selects the labels; ``()`` if there are none.

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
        >>> batch = {"x": jnp.eye(2), "y": jnp.array([0, 1])}
        >>> mixed = augmentations.mixup(1.0, 2)(batch, jax.random.key(3))
        >>> bool(jnp.allclose(mixed["x"], mixed["y"]))
        True

    References:
        Zhang et al., mixup: beyond empirical risk minimization, 2018, equation 1 and
        figure 1, https://arxiv.org/abs/1710.09412. The code there, torchvision and
        timm take one $\lambda$ per batch, as ``per_example=False`` does.
    """
    num_classes = check_mixing(alpha, targets, num_classes)

    def mixed_up(batch: Batch, key: Key) -> Batch:
        leaves = selected_leaves("images", images, batch)
        answers = selected_labels(labels, batch)
        n = num_examples(leaves | answers)
        k_weight, k_order = jax.random.split(key)
        weight = random_weights(k_weight, alpha, (n,) if per_example else ())
        order = jax.random.permutation(k_order, n)
        made: dict[str, Any] = {
            path: mix(leaf, numerics.rows(leaf, order), weight)
            for path, leaf in leaves.items()
        }
        made |= mixed(answers, order, weight, targets, num_classes)
        return replaced(batch, made)

    return as_map("mixup", mixed_up)
