"""AdaBelief: Adam that divides by how far gradients lie from their average."""

from __future__ import annotations

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import optional_decay
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


class ScaleByBeliefState(NamedTuple):
    """State of `scale_by_belief`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g - mu|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_belief(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    *,
    nesterov: bool = False,
    accumulate_eps: bool = True,
) -> Transform:
    r"""Divide by the root mean square deviation of gradients: AdaBelief's direction.

    Returns $u_t$ of `adabelief`; see there for the equations and the reference. Where
    the denominator is zero, the update is zero.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        nesterov: whether the numerator looks ahead, as in `scale_by_adam`.
        accumulate_eps: whether $\bar\epsilon$ is added within the recurrence.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByBeliefState:
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleByBeliefState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByBeliefState, params: Params
    ) -> tuple[Updates, ScaleByBeliefState]:
        beta_1, beta_2, extra = numerics.hypers(state.step, b1, b2, eps_root)
        updates = squarable(updates, count=4)  # differences are up to twice as large
        mu = tree.average(beta_1, state.mu, updates)
        nu = average_square(beta_2, state.nu, tree.sub(updates, mu))
        raised = jax.tree.map(lambda v: v + extra.astype(v.dtype), nu)
        new_updates = divide_by_root(
            look_ahead(mu, updates, beta_1, state.step, nesterov=nesterov),
            remove_bias(raised, beta_2, state.step),
            inside=0.0,
            outside=numerics.hyper(eps, state.step),
        )
        kept = raised if accumulate_eps else nu
        return new_updates, ScaleByBeliefState(numerics.next_step(state.step), mu, kept)

    return chain(Transform(init, update, name="scale_by_belief"))


def adabelief(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    *,
    nesterov: bool = False,
    accumulate_eps: bool = True,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""AdaBelief: long steps where the gradient is close to its average.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t - \mu_t|^2 + \bar\epsilon$$
    $$u_t = \frac{\mu_t / (1 - \beta_1^t)}
      {\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon}, \qquad
      w_{t+1} = w_t - \alpha_t\,u_t$$

    The paper and optax add $\bar\epsilon$ within the recurrence, so that it builds up
    to $\bar\epsilon / (1 - \beta_2)$. With ``accumulate_eps=False`` it stays out of the
    average, and the root is that of $(\nu_t + \bar\epsilon) / (1 - \beta_2^t)$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        nesterov: whether the numerator looks ahead, as in `adam`.
        accumulate_eps: whether $\bar\epsilon$ is added within the recurrence.
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
        >>> optimizer = fg.adabelief(1e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))  # at first g - mu is b1 g
        [-0.001111  0.001111]

    References:
        Zhuang et al., AdaBelief optimizer: adapting stepsizes by the belief in
        observed gradients, 2020, algorithm 2, https://arxiv.org/abs/2010.07468, where
        $\epsilon = \bar\epsilon$. Differs from the authors' later code in: no
        rectification.
    """
    return chain(
        scale_by_belief(
            b1, b2, eps, eps_root, nesterov=nesterov, accumulate_eps=accumulate_eps
        ),
        *optional_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
