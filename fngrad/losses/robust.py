r"""Losses that are a square near the target and a straight line far from it.

`fngrad.losses.huber` and `fngrad.losses.log_cosh` are others. The keywords that all
losses share are explained in `fngrad.losses`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.losses.core import (
    Array,
    Axis,
    Reduction,
    absolute,
    float_pair,
    reduce_entries,
)
from fngrad.types import Scalar

_NAMES = ("predictions", "targets")


def smooth_l1(
    predictions: Array,
    targets: Array,
    *,
    beta: Scalar = 1.0,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the absolute error with a rounded tip.

    With $r = |x - y|$: $r^2 / (2 \beta)$ for $r \le \beta$, else $r - \beta / 2$. It is
    `fngrad.losses.huber` over its $\delta = \beta$, so its slope is at most 1.

    Args:
        predictions: $x$, floats.
        targets: $y$, of the same shape.
        beta: $\beta$, >= 0, in the units of the predictions; at 0 it is
            `fngrad.losses.absolute_error`.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating, or the targets are complex.
        ValueError: if shapes do not fit, the reduction is unknown, or ``beta < 0``.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import losses
        >>> print(losses.smooth_l1(jnp.array([1.0, 3.0]), jnp.zeros(2), beta=2.0))
        [0.25 2.  ]

    References:
        Girshick, Fast R-CNN, 2015, https://arxiv.org/abs/1504.08083, equation 3.
        Differs from it in: beta, as in torch.
    """
    numerics.check_number("beta", beta, low=0.0)
    pair = float_pair(_NAMES, predictions, targets)
    bound = numerics.hyper(beta).astype(pair[0].dtype)

    def entry_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        error = jnp.abs(x - y)
        is_near = error < bound
        near = jnp.where(is_near, error, 0)
        share = numerics.divide(near, jnp.broadcast_to(bound, near.shape))
        return jnp.where(is_near, 0.5 * near * share, absolute(x - y) - 0.5 * bound)

    return reduce_entries(entry_loss, pair, axis, where, weights, reduction)


def pseudo_huber(
    predictions: Array,
    targets: Array,
    *,
    delta: Scalar = 1.0,
    axis: Axis = None,
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return a square near the target that turns into a line without a kink.

    $$\delta^2 \left(\sqrt{1 + (r / \delta)^2} - 1\right), \qquad r = x - y$$

    It is $r^2 / 2$ for small and $\delta\,(|r| - \delta)$ for large $r$, exact to
    rounding in both; its gradient is $r / \sqrt{1 + (r / \delta)^2}$.

    Args:
        predictions: $x$, floats.
        targets: $y$, of the same shape.
        delta: $\delta$, > 0 and finite, in the units of the predictions.
        axis, where, weights, reduction: see `fngrad.losses`.

    Raises:
        TypeError: if the predictions are not floating, or the targets are complex.
        ValueError: if shapes do not fit, the reduction is unknown, or delta is out of
            range.

    References:
        Charbonnier, Blanc-Féraud, Aubert and Barlaud, Deterministic edge-preserving
        regularization in computed imaging, 1997, https://doi.org/10.1109/83.551699,
        table I.
    """
    numerics.check_positive("delta", delta)
    numerics.check_number("delta", delta, high=float(jnp.finfo(jnp.float32).max))
    pair = float_pair(_NAMES, predictions, targets)
    width = numerics.hyper(delta).astype(pair[0].dtype)
    return reduce_entries(
        lambda x, y: _pseudo_huber(x - y, width), pair, axis, where, weights, reduction
    )


class _PseudoHuber(NamedTuple):
    loss: jax.Array
    slope: jax.Array  # by the error
    scaled_root: jax.Array  # delta times the root in the loss


def _parts(r: jax.Array, delta: jax.Array) -> _PseudoHuber:
    """Return the loss and what its slopes are made of; no square overflows.

    Near zero the root is of $1 + u^2$ with u = r / delta, far from it |u| times that of
    $1 + u^{-2}$.
    """
    is_near = jnp.abs(r) <= delta
    near, far = jnp.where(is_near, r, 0), jnp.where(is_near, delta, jnp.abs(r))
    root = jnp.sqrt(1 + jnp.square(near / delta))
    inverse = delta / far
    slanted = jnp.sqrt(1 + inverse * inverse)
    beyond = delta * (far / (inverse + slanted))
    return _PseudoHuber(
        jnp.where(is_near, near * (near / (1 + root)), beyond),
        jnp.where(is_near, near / root, jnp.sign(r) * (delta / slanted)),
        jnp.where(is_near, delta * root, far * slanted),
    )


@jax.custom_jvp
def _pseudo_huber(r: jax.Array, delta: jax.Array) -> jax.Array:
    return _parts(r, delta).loss


@_pseudo_huber.defjvp
def _pseudo_huber_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (r, delta), (r_dot, delta_dot) = primals, tangents
    loss, slope, scaled_root = _parts(r, delta)
    share = loss / delta
    by_delta = share * (share / scaled_root)
    return loss, slope * r_dot + by_delta * delta_dot
