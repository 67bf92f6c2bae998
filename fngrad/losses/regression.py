"""Losses of real predictions: each entry is compared with its target.

The keywords that all losses share are explained in `fngrad.losses`.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    absolute,
    complex_pair,
    excess_over_log,
    float_pair,
    reduce_entries,
    slopes_of,
    times,
)
from fngrad.types import Scalar


def squared_error(
    predictions: Array,
    targets: Array | None = None,
    *,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return $|x - y|^2$.

    Args:
        predictions: $x$, floats or complex.
        targets: $y$, of the same shape; ``None`` is zero.
        axis, where, weights, reduction: see `fngrad.losses`.

    Returns:
        The losses per example, or one number, in at least float32.

    Raises:
        TypeError: if the predictions are not floating.
        ValueError: if shapes do not fit, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> print(losses.squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
        [0. 4.]
    """
    pair = _pair(predictions, targets, is_complex=True)

    return reduce_entries(
        lambda x, y: tree.abs_square(x - y), pair, axis, where, weights, reduction
    )


def absolute_error(
    predictions: Array,
    targets: Array | None = None,
    *,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return $|x - y|$; its gradient at 0 is 0.

    Args:
        predictions: $x$, floats or complex.
        targets: $y$, of the same shape; ``None`` is zero.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating.
        ValueError: if shapes do not fit, or the reduction is unknown.
    """
    pair = _pair(predictions, targets, is_complex=True)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        if jnp.iscomplexobj(x):
            return numerics.modulus(x - y)
        return absolute(x - y)

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


def huber(
    predictions: Array,
    targets: Array | None = None,
    *,
    delta: Scalar = 1.0,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return a square near the target and a straight line far from it.

    With $r = |x - y|$: $\tfrac12 r^2$ for $r \le \delta$, else
    $\delta\,(r - \tfrac12 \delta)$. Its gradient is that of the halved square,
    clipped to $[-\delta, \delta]$.

    Args:
        predictions: $x$, floats.
        targets: $y$, of the same shape; ``None`` is zero.
        delta: $\delta$, > 0, in the units of the predictions; ``inf`` leaves the
            halved square.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating.
        ValueError: if shapes do not fit, the reduction is unknown, or ``delta <= 0``.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> print(losses.huber(jnp.array([1.0, 3.0]), delta=1.0))
        [0.5 2.5]

    References:
        Huber, Robust estimation of a location parameter, 1964,
        https://doi.org/10.1214/aoms/1177703732.
    """
    numerics.check_positive("delta", delta)
    pair = _pair(predictions, targets)
    bound = numerics.hyper(delta).astype(pair[0].dtype)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        error = jnp.abs(x - y)
        is_near = error <= bound
        near, edge = jnp.where(is_near, error, 0), jnp.where(is_near, 0, bound)
        beyond = jnp.where(is_near, 0, error - bound)
        # Each side by itself: their sum would cancel in the slope at a large bound.
        return 0.5 * near * near + (0.5 * edge * edge + edge * beyond)

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


def log_cosh(
    predictions: Array,
    targets: Array | None = None,
    *,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return $\log \cosh (x - y)$, a smooth relative of `huber`.

    It is $r^2 / 2$ for small and $|r| - \log 2$ for large $r = x - y$, exact to
    rounding in both; its gradient is $\tanh r$.

    Args:
        predictions: $x$, floats.
        targets: $y$, of the same shape; ``None`` is zero.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating.
        ValueError: if shapes do not fit, or the reduction is unknown.
    """
    pair = _pair(predictions, targets)
    return reduce_entries(
        lambda x, y: _log_cosh(x - y), pair, axis, where, weights, reduction
    )


def quantile(
    predictions: Array,
    targets: Array,
    *,
    level: Scalar = 0.5,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the pinball loss, whose minimizer is a quantile of the targets.

    $$\max(q\,(y - x),\ (q - 1)(y - x))$$

    Args:
        predictions: $x$, floats.
        targets: $y$, of the same shape.
        level: $q$, in [0, 1]; 0.5 is half of `absolute_error`.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating.
        ValueError: if shapes do not fit, the reduction is unknown, or a level is
            outside [0, 1].

    References:
        Koenker and Bassett, Regression quantiles, 1978,
        https://doi.org/10.2307/1913643.
    """
    numerics.check_number("level", level, low=0.0, high=1.0)
    pair = _pair(predictions, targets)
    q = numerics.hyper(level).astype(pair[0].dtype)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.maximum(q * (y - x), (q - 1) * (y - x))

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


def poisson_nll(
    log_predictions: Array,
    targets: Array,
    *,
    full: bool = False,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the negative log likelihood of counts: $e^x - y\,x$, in nats.

    Args:
        log_predictions: $x$, the logarithm of the rate. At ``-inf`` a count of zero
            costs nothing.
        targets: $y$, counts >= 0, of the same shape.
        full: whether to add $\log y!$, which does not depend on $x$.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating.
        ValueError: if shapes do not fit, or the reduction is unknown.
    """
    names = ("log_predictions", "targets")
    pair = float_pair(names, log_predictions, targets)

    entry_loss = _full_poisson_nll if full else _poisson_nll
    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


def _pair(
    predictions: Array, targets: Array | None, is_complex: bool = False
) -> list[jax.Array]:
    if targets is None:
        targets = jnp.zeros(jnp.shape(predictions), bool)
    names = ("predictions", "targets")
    if is_complex and jnp.iscomplexobj(predictions):
        return complex_pair(names, predictions, targets)
    return float_pair(names, predictions, targets)


def _poisson_nll(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.exp(x) - times(y, x)


def _plain_full_poisson_nll(x: jax.Array, y: jax.Array) -> jax.Array:
    return _poisson_nll(x, y) + gammaln(y + 1)


@slopes_of(_plain_full_poisson_nll)
def _full_poisson_nll(x: jax.Array, y: jax.Array) -> jax.Array:
    r"""Return $e^x - y x + \log y!$ without terms of the size of $y \log y$.

    With $\lambda = e^x$ and $r = (\lambda - y) / y$ it is
    $y\,(r - \log(1 + r)) + (\log y! - y \log y + y)$.
    """
    rate = jnp.exp(x)
    is_large = (y >= 16) & (rate >= jnp.finfo(x.dtype).tiny) & jnp.isfinite(rate)
    y_large, rate = jnp.where(is_large, y, 16), jnp.where(is_large, rate, 16)
    r = (rate - y_large) / y_large
    is_near = jnp.abs(r) <= 0.5
    near = excess_over_log(jnp.where(is_near, r, 0))
    deviance = jnp.where(is_near, near, r - jnp.log(rate / y_large))
    # Stirling's series; its next term is below 1e-16.
    u = 1 / y_large
    series = jnp.zeros_like(u)
    for term in (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * u * u + term
    remainder = 0.5 * jnp.log(2 * math.pi * y_large) + series * u
    large = y_large * deviance + remainder
    return jnp.where(is_large, large, _plain_full_poisson_nll(x, y))


@jax.custom_jvp
def _log_cosh(x: jax.Array) -> jax.Array:
    r"""Return log cosh x; $\cosh x = 1 + 2 \sinh^2(x/2)$ keeps small x exact."""
    size = jnp.abs(x)
    small = jnp.minimum(size, 1)
    near = jnp.log1p(2 * jnp.sinh(small / 2) ** 2)
    far = size + jnp.log1p(jnp.exp(-2 * size)) - math.log(2)
    return jnp.where(size < 1, near, far)


@_log_cosh.defjvp
def _log_cosh_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    return _log_cosh(x), jnp.tanh(x) * x_dot
