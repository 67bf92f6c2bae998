"""Losses of predicted distributions of real numbers.

`fngrad.losses.quantile` is the likelihood of quantiles, `fngrad.losses.poisson_nll`
that of counts. The keywords that all losses share are explained in `fngrad.losses`.
"""

import math

import jax
import jax.numpy as jnp

from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    float_pair,
    keep,
    make_masks,
    reduce,
    resolve_axes,
)


def gaussian_nll(
    predictions: Array,
    targets: Array,
    log_variances: Array,
    *,
    full: bool = False,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the negative log likelihood of a normal distribution, in nats.

    $$\tfrac12 \left(s + (x - y)^2 e^{-s}\right)$$

    Args:
        predictions: $x$, the mean, floats.
        targets: $y$, of the same shape.
        log_variances: $s$, the logarithm of the variance, of the same shape: any number
            will do, so a model can predict it.
        full: whether to add $\tfrac12 \log 2 \pi$, which depends on nothing.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating, or others are complex.
        ValueError: if shapes do not fit, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> x, y, s = jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]), jnp.zeros(2)
        >>> print(losses.gaussian_nll(x, y, s))
        [0. 2.]

    References:
        Nix and Weigend, Estimating the mean and variance of the target probability
        distribution, 1994, https://doi.org/10.1109/ICNN.1994.374138, equation 3.
        Differs from torch in: it takes the variance, and clips it at 1e-6.
    """
    x, y = float_pair(("predictions", "targets"), predictions, targets)
    x, s = float_pair(("predictions", "log_variances"), x, log_variances)
    y = y.astype(x.dtype)
    axes = resolve_axes(axis, x.ndim)
    masks = make_masks(where, weights, x.shape, axes)
    x, y, s = (keep(masks.entry, a) for a in (x, y, s))
    # Scaled before it is squared, a large error of a large variance fits.
    terms = 0.5 * (s + jnp.square((x - y) * jnp.exp(-0.5 * s)))
    terms = terms + 0.5 * math.log(2 * math.pi) if full else terms
    loss = jnp.sum(keep(masks.entry, terms), axis=axes)
    return reduce(loss, masks.example, weights, reduction)
