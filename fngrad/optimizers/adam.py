"""Adam and AdamW."""

from __future__ import annotations

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying, optional_decay
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_moments,
    divide_by_root,
    look_ahead,
    remove_bias,
    squarable,
    zero_moment,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_adam(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""Divide the debiased average by the debiased root mean square: Adam's direction.

    Returns $u_t$ of `adam`; see there for the equations and the references. Where the
    denominator is zero, the update is zero; its gradient is finite there, even without
    ``eps_root``.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        nesterov: whether to look ahead.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByAdamState:
        nu = zero_moment(params)
        return ScaleByAdamState(numerics.first_step(), tree.wide_zeros_like(params), nu)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params
    ) -> tuple[Updates, ScaleByAdamState]:
        updates = squarable(updates)
        beta_1, beta_2 = numerics.hypers(state.step, b1, b2)
        mu = tree.average(beta_1, state.mu, updates)
        nu = average_square(beta_2, state.nu, updates)
        new_updates = divide_by_root(
            look_ahead(mu, updates, beta_1, state.step, nesterov=nesterov),
            remove_bias(nu, beta_2, state.step),
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        return new_updates, ScaleByAdamState(numerics.next_step(state.step), mu, nu)

    return chain(Transform(init, update, name="scale_by_adam"))


def adam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    nesterov: bool = False,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""Adam: averaged gradients over the root of averaged squares, both debiased.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2$$
    $$u_t = \frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}, \qquad
      \hat\mu_t = \frac{\mu_t}{1 - \beta_1^t}, \qquad
      \hat\nu_t = \frac{\nu_t}{1 - \beta_2^t}, \qquad
      w_{t+1} = w_t - \alpha_t\,u_t$$

    With ``nesterov``
    $\hat\mu_t = \beta_1 \mu_t / (1 - \beta_1^{t+1}) +
    (1 - \beta_1) g_t / (1 - \beta_1^t)$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        nesterov: whether to look ahead (NAdam without its schedule of $\beta_1$).
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. PyTorch's is L2 regularization:
            ``chain(add_decayed_weights(l), adam(a))``. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adam(1e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))
        [-0.001  0.001]

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 1,
        https://arxiv.org/abs/1412.6980. ``nesterov``: the paper cited in `nadam`,
        with $\beta_1$ constant; $\hat\nu$ differs as there.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov),
        *optional_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 1e-4,
    mask: Selector | None = None,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""Adam with decoupled weight decay, times the learning rate.

    With Adam's direction $u_t$ (see `adam`)

    $$w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    so that without gradients $w$ shrinks by the factor $1 - \alpha_t \lambda$ per step.
    The decay is not divided by Adam's denominator; for L2 regularization use
    ``chain(add_decayed_weights(l), adam(a))``.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$; PyTorch's default is 1e-2.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        nesterov: whether to look ahead.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.adamw(3e-4, weight_decay=0.1, mask="**/weight")

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019, algorithm
        2, https://arxiv.org/abs/1711.05101. Differs from it in: one schedule scales
        both the step and the decay, and the decay takes the learning rate as a factor
        too, as in PyTorch and optax.
    """
    rule = scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov)
    return decaying(rule, learning_rate, weight_decay, mask)
