"""Losses of real predictions: each entry is compared with its target.

The keywords that all losses share are explained in `fngrad.losses`.
"""

import math

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    float_pair,
    reduce_entries,
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
    r"""Return $(x - y)^2$.

    Args:
        predictions: $x$, floats.
        targets: $y$, of the same shape; ``None`` is zero.
        axis, where, weights, reduction: see `fngrad.losses`.

    Returns:
        The losses per example, or one number, in at least float32.

    Raises:
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit, or an unknown reduction.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> print(losses.squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
        [0. 4.]
    """
    pair = _pair(predictions, targets)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return (x - y) ** 2

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


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
        predictions: $x$, floats.
        targets: $y$, of the same shape; ``None`` is zero.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit, or an unknown reduction.
    """
    pair = _pair(predictions, targets)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sign(x - y) * (x - y)  # jnp.abs has the slope 1 at 0

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
        delta: $\delta$, > 0, in the units of the predictions.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit, an unknown reduction, or ``delta <= 0``.

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
        square_part = jnp.minimum(error, bound)
        return 0.5 * square_part**2 + bound * (error - square_part)

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
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit, or an unknown reduction.
    """
    pair = _pair(predictions, targets)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return _log_cosh(x - y)

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


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
    r"""Return the pinball loss, whose minimiser is a quantile of the targets.

    $$\max(q\,(y - x),\ (q - 1)(y - x))$$

    Args:
        predictions: $x$, floats.
        targets: $y$, of the same shape.
        level: $q$, in [0, 1]; 0.5 is half of `absolute_error`.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit, an unknown reduction, or a level outside
            of [0, 1].

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
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit, or an unknown reduction.
    """
    names = ("log_predictions", "targets")
    pair = float_pair(names, log_predictions, targets)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        loss = jnp.exp(x) - times(y, x)
        return loss + jax.scipy.special.gammaln(y + 1) if full else loss

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


def _pair(predictions: Array, targets: Array | None) -> list[jax.Array]:
    if targets is None:
        targets = jnp.zeros(jnp.shape(predictions), bool)
    return float_pair(("predictions", "targets"), predictions, targets)


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
