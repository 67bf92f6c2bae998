"""Correlations of predictions and targets: of values, and of ranks."""

from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.metrics.accumulators import Correlation, Rows
from fngrad.metrics.derived import Derived
from fngrad.metrics.regression import centered, paired
from fngrad.metrics.sums import ends_of_runs, pair_of_sum


def pearson(
    predictions: Any, targets: Any, *, where: Any = None, weights: Any = None
) -> Correlation:
    r"""Measure the linear correlation of predictions and targets, in [-1, 1].

    $$\frac{\sum_i w_i (x_i - \bar x)(y_i - \bar y)}
      {\sqrt{\sum_i w_i (x_i - \bar x)^2\ \sum_i w_i (y_i - \bar y)^2}}$$

    for each output, then the mean over outputs. Squares must fit in the dtype.

    Args:
        predictions: $x$, floats, shape ``(n, ...)``.
        targets: $y$, of the same shape.
        where, weights: see `fngrad.metrics`; of shape ``(n,)``.

    Returns:
        The metric; its value is NaN where predictions or targets are constant.

    Raises:
        TypeError: if the mask is not bool, or numbers are complex.
        ValueError: if shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import metrics
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> print(metrics.pearson(x, -2 * x).value())
        -1.0
    """
    x, y, w = paired(predictions, targets, where, weights)
    weight = pair_of_sum(w, 0)
    mean_x, x = centered(x, w, weight[0])
    mean_y, y = centered(y, w, weight[0])
    products = [pair_of_sum(w * a * b, 0) for a, b in ((x, x), (y, y), (x, y))]
    totals, rest = zip(weight, mean_x, mean_y, *products, strict=True)
    return Correlation._make((*totals, rest))


def spearman(predictions: Any, targets: Any, *, where: Any = None) -> Derived:
    """Measure the correlation of ranks, in [-1, 1]; equal values share their mean rank.

    All predictions and targets are kept until the ranks of the whole can be told.

    Args:
        predictions: floats, shape ``(n, ...)``.
        targets: of the same shape.
        where: see `fngrad.metrics`; of shape ``(n,)``. An example has one rank, so
            there are no weights.

    Returns:
        The metric, the mean over outputs; its value is NaN where predictions or targets
        are constant, or one of them is NaN.

    Raises:
        TypeError: if the mask is not bool, or numbers are complex.
        ValueError: if shapes do not fit.

    References:
        Spearman, The proof and measurement of association between two things, 1904,
        https://doi.org/10.2307/1412159.
    """
    x, y, w = paired(predictions, targets, where, None)
    columns = (len(x), -1) if x.size else (len(x), 1)
    x, y, w = (a.reshape(columns) for a in (x, y, w))
    return Derived(Rows(x, y, w[:, 0]), _rank_correlation)


def _rank_correlation(rows: Rows) -> jax.Array:
    kept = rows.weight != 0

    def per_output(x: jax.Array, y: jax.Array) -> jax.Array:
        a, b = (_centered_ranks(v, kept) for v in (x, y))
        xx, yy, xy = (pair_of_sum(u * v)[0] for u, v in ((a, a), (b, b), (a, b)))
        spread = jnp.sqrt(xx) * jnp.sqrt(yy)
        is_void = (spread == 0) | jnp.any(kept & (jnp.isnan(x) | jnp.isnan(y)))
        return jnp.where(is_void, jnp.nan, numerics.divide(xy, spread))

    return jnp.mean(jax.vmap(per_output, in_axes=1)(rows.x, rows.y))


def _centered_ranks(x: jax.Array, kept: jax.Array) -> jax.Array:
    """Return ranks less their mean, over the number of examples; 0 if left out.

    Integers hold twice the ranks, so ties and the mean are exact.
    """
    order = jnp.lexsort((x, ~kept))
    first, last = ends_of_runs(x[order])
    count = jnp.sum(kept.astype(jnp.int32))
    last = jnp.minimum(last, count - 1)  # a run may go on among those left out
    twice = first + last - (count - 1)
    ranks = numerics.divide(twice.astype(x.dtype), count.astype(x.dtype))
    return jnp.zeros_like(x).at[order].set(jnp.where(kept[order], ranks, 0))
