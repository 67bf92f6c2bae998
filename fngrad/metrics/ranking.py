"""Metrics of ranked lists: how well scores order the items of a query."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.metrics.accumulators import Mean
from fngrad.metrics.examples import mask_and_weights, mean_of, wide
from fngrad.metrics.sums import ends_of_runs


def ndcg(
    scores: Any,
    relevance: Any,
    k: int | None = None,
    *,
    gain: Literal["linear", "exponential"] = "linear",
    where: Any = None,
    weights: Any = None,
) -> Mean:
    r"""Measure the normalized discounted cumulative gain of lists.

    $$\mathrm{DCG} = \sum_{r \le k} \frac{g(y_{(r)})}{\log_2(r + 1)}, \qquad
      \mathrm{NDCG} = \frac{\mathrm{DCG}}{\mathrm{DCG\ of\ the\ best\ order}}$$

    with $y_{(r)}$ the relevance of the item of rank $r$. Items of equal scores share
    the mean of their ranks' discounts, as if over all their orders.

    Args:
        scores: floats, shape ``(..., items)``.
        relevance: $y$, >= 0, of the same shape.
        k: how many ranks count, >= 1; ``None`` is all.
        gain: $g$: ``"linear"`` is $y$, ``"exponential"`` $2^y - 1$.
        where: bools, shape ``(...)`` for lists or ``(..., items)`` for items: padding
            that ``where`` leaves out is in no list.
        weights: numbers per list, shape ``(...)``.

    Returns:
        The mean over lists; a list without relevant items counts 0.

    Raises:
        TypeError: if the mask is not bool, or numbers are complex.
        ValueError: if shapes do not fit, k is not an int >= 1, or the gain is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import metrics
        >>> scores = jnp.array([[3.0, 1.0, 2.0]])
        >>> relevance = jnp.array([[0.0, 1.0, 0.0]])
        >>> print(metrics.ndcg(scores, relevance).value())
        0.5

    References:
        Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002,
        https://doi.org/10.1145/582415.582418. Differs from it in: discounts are
        $1 / \log_2(r + 1)$ from the first rank on, and ties are averaged (McSherry and
        Najork, 2008), as in scikit-learn.
    """
    numerics.check_choice("gain", gain, ("linear", "exponential"))
    x, y = wide("scores", scores), wide("relevance", relevance)
    if x.ndim < 1 or x.shape != y.shape:
        raise ValueError(
            "need scores (..., items) and relevance of the same shape, "
            f"got {x.shape} and {y.shape}"
        )
    y = y.astype(x.dtype)
    k = x.shape[-1] if k is None else numerics.check_count("k", k, 1)
    items, lists = jnp.ones(x.shape, bool), where
    if where is not None and jnp.shape(where) == x.shape:
        _, counted = mask_and_weights(where, None, x.shape, x.dtype)
        items, lists = counted != 0, None
    mask, w = mask_and_weights(lists, weights, x.shape[:-1], x.dtype)
    items = items if mask is None else items & mask[..., None]
    is_list = jnp.any(items, axis=-1)
    y = jnp.where(items, y, 0)
    gains = y if gain == "linear" else jnp.expm1(y * jnp.log(jnp.asarray(2.0, y.dtype)))
    flat = (a.reshape(-1, x.shape[-1]) for a in (x, gains, items))
    values = jax.vmap(lambda x, g, is_in: _ndcg(x, g, is_in, k))(*flat)
    return mean_of(values.reshape(w.shape), jnp.where(is_list, w, 0))


def _ndcg(x: jax.Array, gains: jax.Array, is_in: jax.Array, k: int) -> jax.Array:
    """Return the metric of one list."""
    rank = jnp.arange(x.size, dtype=x.dtype)
    discounts = jnp.where(rank < k, 1 / jnp.log2(rank + 2), 0)
    up_to = jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(discounts)])
    order = jnp.lexsort((-x, ~is_in))
    first, last = ends_of_runs(x[order])
    # Ties may go on among items that are left out, which come last and gain nothing.
    last = jnp.minimum(last, jnp.maximum(jnp.sum(is_in.astype(jnp.int32)) - 1, first))
    mean = (up_to[last + 1] - up_to[first]) / (last - first + 1).astype(x.dtype)
    found = jnp.sum(gains[order] * mean)
    best = jnp.sum(-jnp.sort(-gains) * discounts)
    is_unordered = jnp.any(is_in & jnp.isnan(x))
    return jnp.where(is_unordered, jnp.nan, numerics.divide(found, best))
