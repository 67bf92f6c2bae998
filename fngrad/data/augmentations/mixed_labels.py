"""Labels of images that are mixed from two."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.programs.reasons_of_nans as reasons_of_nans
from fngrad.data.augmentations.image_batches import mix, selected_leaves
from fngrad.types import Batch, Key, Path, Scalar, Selector

Targets = Literal["soft", "pairs"]
TARGETS = ("soft", "pairs")


class MixedLabels(NamedTuple):
    """The labels of the two images that make one, and the weight of the first."""

    first: jax.Array  # shape (n, ...)
    second: jax.Array  # shape (n, ...)
    weight: jax.Array  # of `first`, in [0, 1], shape (n,)

    def average(self, loss_fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
        r"""Return $\lambda\,\ell(y_1) + (1 - \lambda)\,\ell(y_2)$ for each example.

        Args:
            loss_fn: $\ell$, of the labels, with a value per example, shape ``(n,)``.

        Example:
            >>> import jax.numpy as jnp
            >>> from fngrad.data.augmentations import MixedLabels
            >>> first, second = jnp.array([0.0]), jnp.array([4.0])
            >>> labels = MixedLabels(first, second, jnp.array([0.75]))
            >>> print(labels.average(lambda y: y))
            [1.]
        """
        return mix(loss_fn(self.first), loss_fn(self.second), self.weight)


def check_mixing(
    alpha: Scalar, targets: Targets, num_classes: int | None
) -> int | None:
    """Check what all augmentations that mix take; return the number of classes.

    Raises:
        TypeError: if ``alpha`` is not a number.
        ValueError: if ``alpha`` or the number of classes is not positive, or
            ``targets`` is unknown.
    """
    numerics.check_positive("alpha", alpha)
    numerics.check_choice("targets", targets, TARGETS)
    if num_classes is None:
        return None
    return numerics.check_count("num_classes", num_classes, 1)


def selected_labels(labels: Selector, batch: Batch) -> dict[Path, jax.Array]:
    """Return the labels of a batch by path; none for an empty selector."""
    is_empty = isinstance(labels, list | tuple) and not labels
    return {} if is_empty else selected_leaves("labels", labels, batch)


def random_weights(key: Key, alpha: Scalar, shape: tuple[int, ...]) -> jax.Array:
    """Return weights of the distribution Beta(alpha, alpha).

    A weight is the first of two gamma variables divided by their sum.
    """
    logs = jax.random.loggamma(key, numerics.hyper(alpha), (2, *shape))
    return jax.nn.sigmoid(logs[0] - logs[1])


def mixed(
    labels: dict[Path, jax.Array],
    order: jax.Array,
    weight: jax.Array,
    targets: Targets,
    num_classes: int | None,
) -> dict[Path, Any]:
    """Return labels mixed with those of the examples in another order, by path.

    Args:
        labels: by path, shape ``(n, ...)``.
        order: a permutation of n, int.
        weight: of the first label, shape ``(n,)`` or ``()``.
        targets: see `fngrad.data.augmentations.mixup`.
        num_classes: of integer labels.

    Raises:
        TypeError: if bools are mixed.
        ValueError: if integer labels are mixed without the number of classes.
    """
    return {
        path: _mixed(path, leaf, order, weight, targets, num_classes)
        for path, leaf in labels.items()
    }


def _mixed(
    path: Path,
    labels: jax.Array,
    order: jax.Array,
    weight: jax.Array,
    targets: Targets,
    num_classes: int | None,
) -> Any:
    if targets == "pairs":
        n = labels.shape[:1]
        other = numerics.rows(labels, order)
        return MixedLabels(labels, other, jnp.broadcast_to(weight, n))
    if labels.dtype == bool:
        raise TypeError(
            f"need labels of integers or floats to mix, got bools at {path!r}; cast "
            'them, or keep both with targets="pairs"'
        )
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = _one_hot(path, labels, num_classes)
    return mix(labels, numerics.rows(labels, order), weight)


def _one_hot(path: Path, labels: jax.Array, num_classes: int | None) -> jax.Array:
    """Return probabilities; NaN for labels out of range."""
    if num_classes is None:
        raise ValueError(
            f"need num_classes to mix the integer labels at {path!r}, or "
            'targets="pairs", which keeps both labels and their weight'
        )
    is_known = (labels >= 0) & (labels < num_classes)
    one_hot = jax.nn.one_hot(labels, num_classes)
    with jax.named_scope(reasons_of_nans.LABEL):
        return jnp.where(is_known[..., None], one_hot, jnp.nan)
