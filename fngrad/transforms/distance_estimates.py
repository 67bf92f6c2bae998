"""Estimates of the distance to a solution: what Prodigy and D-Adaptation share.

In these rules ``learning_rate`` multiplies the estimate and is 1 by default; use a
schedule with peak 1 for warm-up or decay.
"""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.transforms.scaling import check_learning_rate
from fngrad.types import Hyper, Scalar, Updates


def inner_product(a: Updates, b: Updates, like: jax.Array) -> jax.Array:
    """Return the inner product over all leaves, in the dtype of ``like``."""
    return tree.vdot(a, b).astype(like.dtype)


def l1_norm(a: Updates, like: jax.Array) -> jax.Array:
    """Return the sum of |a_i| over all leaves, in the dtype of ``like``."""
    return inner_product(a, jax.tree.map(jnp.sign, a), like)


def limit_growth(target: jax.Array, now: jax.Array, rate: jax.Array) -> jax.Array:
    """Return the target, or now * rate where that is less; the rate may be inf."""
    is_limited = jnp.isfinite(rate)
    # inf times a zero tangent would be NaN.
    limit = now * jnp.where(is_limited, rate, 1)
    return jnp.where(is_limited, jnp.minimum(target, limit), target)


def check_multiplier(
    learning_rate: Hyper, estim_lr0: Scalar, growth_rate: Hyper
) -> None:
    """Raise unless the factor, the start and the growth of the estimate are valid.

    Raises:
        TypeError: if ``learning_rate`` is None, or not a number, an array or a
            schedule.
        ValueError: if a number is out of range.
    """
    check_learning_rate(learning_rate)
    numerics.check_positive("estim_lr0", estim_lr0)
    numerics.check_number("growth_rate", growth_rate, low=1.0)


def check_adam(betas: tuple[Hyper, Hyper], eps: Hyper, weight_decay: Hyper) -> None:
    """Raise unless Adam's hyperparameters are in range.

    Raises:
        ValueError: if there are not two betas, or a number is out of range.
    """
    if len(betas) != 2:
        raise ValueError(f"need betas=(b1, b2), got {betas=}")
    check_decay("betas[0]", betas[0], corrected=True)
    check_decay("betas[1]", betas[1], corrected=True)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("weight_decay", weight_decay)
