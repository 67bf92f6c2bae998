"""Losses of embeddings: what belongs together is closer than what does not.

The keywords that all losses share are explained in `fngrad.losses`.
"""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    class_axes,
    float_pair,
    keep,
    make_masks,
    reduce,
)
from fngrad.losses.softmax import cross_entropy_of_index
from fngrad.numerics.matrix_products import matmul
from fngrad.types import Scalar


def triplet(
    anchors: Array,
    positives: Array,
    negatives: Array,
    *,
    margin: Scalar = 1.0,
    axis: Axis = -1,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return how far the negative is from being farther than the positive by a margin.

    $$\max(0,\ \lVert a - p \rVert - \lVert a - n \rVert + m)$$

    Args:
        anchors: $a$, floats, shape ``(..., coordinates)``.
        positives: $p$, of the same shape.
        negatives: $n$, of the same shape.
        margin: $m$, >= 0, in the units of the coordinates.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the anchors are not floating, or others are complex.
        ValueError: if shapes do not fit, there is no axis, the reduction is unknown, or
            the margin is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> a, p, n = jnp.zeros(2), jnp.array([3.0, 4.0]), jnp.array([0.0, 5.5])
        >>> print(losses.triplet(a, p, n))
        0.5

    References:
        Schroff, Kalenichenko and Philbin, FaceNet, 2015,
        https://arxiv.org/abs/1503.03832, equation 1. Differs from it in: distances are
        not squared, as in torch; torch adds 1e-6 to each difference.
    """
    numerics.check_number("margin", margin, low=0.0)
    a, p = float_pair(("anchors", "positives"), anchors, positives)
    a, n = float_pair(("anchors", "negatives"), a, negatives)
    axes = class_axes(axis, a.ndim)
    masks = make_masks(where, weights, a.shape, axes)
    a, p, n = (keep(masks.entry, x.astype(a.dtype)) for x in (a, p, n))
    near, far = (numerics.norm(a - x, axes) for x in (p, n))
    loss = jnp.maximum(near - far + numerics.hyper(margin).astype(a.dtype), 0)
    return reduce(keep(masks.example, loss), masks.example, weights, reduction)


def info_nce(
    queries: Array,
    keys: Array,
    *,
    temperature: Scalar = 0.1,
    symmetric: bool = False,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the surprise of each query's own key among the keys of a batch, in nats.

    $$-\log \frac{e^{c(q_i, k_i) / \tau}}{\sum_j e^{c(q_i, k_j) / \tau}}, \qquad
      c(q, k) = \frac{q \cdot k}{\lVert q \rVert\,\lVert k \rVert}$$

    Args:
        queries: $q$, floats, shape ``(n, coordinates)``.
        keys: $k$, of the same shape: the other view of each example.
        temperature: $\tau$, > 0; a tracer, such as a parameter, will do.
        symmetric: whether to take the mean with the surprise of each key's own query,
            as CLIP does.
        where: bools, shape ``(n,)``: what it leaves out is no candidate either.
        weights: numbers, shape ``(n,)``; an example of weight 0 is left out as well.
        reduction: see `fngrad.losses`.

    Returns:
        The losses per example, shape ``(n,)``, or one number.

    Raises:
        TypeError: if the queries are not floating, or the keys are complex.
        ValueError: if shapes do not fit, the reduction is unknown, or
            ``temperature <= 0``.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> loss = losses.info_nce(jnp.eye(3), jnp.eye(3), temperature=0.25)
        >>> print(loss.shape, f"{loss[0]:.4f}")
        (3,) 0.0360

    References:
        Van den Oord, Li and Vinyals, Representation learning with contrastive
        predictive coding, 2018, https://arxiv.org/abs/1807.03748, equation 4; with
        cosines and both directions in Radford et al., Learning transferable visual
        models from natural language supervision, 2021,
        https://arxiv.org/abs/2103.00020, figure 3.
    """
    numerics.check_positive("temperature", temperature)
    q, k = float_pair(("queries", "keys"), queries, keys)
    if q.ndim != 2:
        raise ValueError(
            f"need queries and keys of shape (n, coordinates), got {q.shape}"
        )
    masks = make_masks(where, weights, q.shape, (1,))
    q, k = (_unit(keep(masks.entry, x)) for x in (q, k))
    logits = matmul(q, k.T) / numerics.hyper(temperature).astype(q.dtype)
    if masks.example is not None:  # itself stays, so that no row is empty
        both = masks.example[:, None] & masks.example[None]
        logits = jnp.where(both | jnp.eye(len(q), dtype=bool), logits, -jnp.inf)
    own = jnp.arange(len(q), dtype=jnp.int32)
    loss = cross_entropy_of_index(1, logits, own)
    if symmetric:
        loss = 0.5 * (loss + cross_entropy_of_index(0, logits, own))
    return reduce(keep(masks.example, loss), masks.example, weights, reduction)


def _unit(x: jax.Array) -> jax.Array:
    """Return rows over their norms; a row of zeros stays, with zero gradient."""
    return numerics.divide(x, jnp.broadcast_to(numerics.norm(x, 1, True), x.shape))
