"""Yogi: a second moment whose steps are at most a share of the squared gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import optional_decay
from fngrad.transforms.moment_arithmetic import (
    check_moments,
    divide_by_root,
    full_moment,
    raised,
    remove_bias,
    squarable,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Scalar, Selector, Updates


class ScaleByYogiState(NamedTuple):
    """State of `scale_by_yogi`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # moves towards |g|**2 by a share of |g|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_yogi(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-3,
    eps_root: Hyper = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
    *,
    debias: bool = True,
) -> Transform:
    r"""Divide by the root of a second moment that forgets slowly: Yogi's direction.

    Returns $u_t$ of `yogi`; see there for the equations and the reference. Where the
    denominator is zero, the update is zero.

    Args:
        b1: $\beta_1$ in [0, 1); in [0, 1] without ``debias``.
        b2: $\beta_2$ in [0, 1); in [0, 1] without ``debias``.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        initial_accumulator_value: the start of both averages, >= 0.
        debias: whether both averages are corrected as if they began at zero.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps, eps_root=eps_root, corrected=debias)
    numerics.check_number(
        "initial_accumulator_value", initial_accumulator_value, low=0.0
    )

    def init(params: Params) -> ScaleByYogiState:
        mu = raised(tree.wide_zeros_like(params), initial_accumulator_value)
        nu = full_moment(params, initial_accumulator_value)
        return ScaleByYogiState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByYogiState, params: Params
    ) -> tuple[Updates, ScaleByYogiState]:
        beta_1, beta_2 = numerics.hypers(state.step, b1, b2)

        def advance(nu: jax.Array, g: jax.Array) -> jax.Array:
            square = tree.abs_square(g)
            moved = nu - numerics.scaled(1 - beta_2, jnp.sign(nu - square) * square)
            return numerics.saturated(moved, g)

        updates = squarable(updates)
        mu = tree.average(beta_1, state.mu, updates)
        nu = jax.tree.map(advance, state.nu, updates)
        new_updates = divide_by_root(
            remove_bias(mu, beta_1, state.step, bounded=True) if debias else mu,
            remove_bias(nu, beta_2, state.step) if debias else nu,
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        return new_updates, ScaleByYogiState(numerics.next_step(state.step), mu, nu)

    return chain(Transform(init, update, name="scale_by_yogi"))


def yogi(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-3,
    eps_root: Hyper = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
    *,
    debias: bool = True,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""Yogi: Adam whose denominator forgets a large gradient slowly.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \nu_{t-1} - (1 - \beta_2)\,
      \operatorname{sign}(\nu_{t-1} - |g_t|^2)\,|g_t|^2$$
    $$u_t = \frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}, \qquad
      w_{t+1} = w_t - \alpha_t\,u_t, \qquad
      \mu_0 = \nu_0 = \text{initial value}$$

    with $\hat\mu_t = \mu_t / (1 - \beta_1^t)$ and $\hat\nu_t = \nu_t / (1 - \beta_2^t)$
    if ``debias``, else $\mu_t$ and $\nu_t$, as in the paper. After a large gradient
    Adam's $\nu$ falls by a share of itself per step, Yogi's by a share of the small
    squares that follow.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1); in [0, 1] without ``debias``.
        b2: $\beta_2$ in [0, 1); in [0, 1] without ``debias``.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        initial_accumulator_value: the start of both averages, >= 0.
        debias: whether both averages are corrected as if they began at zero.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.yogi(1e-2)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-0.01  0.01]

    References:
        Zaheer et al., Adaptive methods for nonconvex optimization, 2018, algorithm 2,
        https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization.
        Differs from it in: bias correction and the start of $\mu$, which are those of
        the authors' code in TensorFlow, and of optax.
    """
    rule = scale_by_yogi(
        b1, b2, eps, eps_root, initial_accumulator_value, debias=debias
    )
    decay = optional_decay(weight_decay, mask)
    return chain(rule, *decay, scale_by_learning_rate(learning_rate))
