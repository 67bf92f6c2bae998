"""Adan: averages of the gradient and of how it changes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying, proximal_decay
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_moments,
    divide_by_root,
    remove_bias,
    squarable,
    zero_moment,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByAdanState(NamedTuple):
    """State of `scale_by_adan`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    delta: Updates  # average of the change of g
    nu: Updates  # average of |g + b2 (change of g)|**2, real
    gradient: Updates  # the last g

    signed = ("mu", "delta")  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_adan(
    b1: Hyper = 0.98,
    b2: Hyper = 0.92,
    b3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
) -> Transform:
    r"""Look ahead along the average change of the gradient: Adan's direction.

    Returns $u_t$ of `adan`; see there for the equations and the reference. Where the
    denominator is zero, the update is zero.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        b3: $\beta_3$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, b3=b3, eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByAdanState:
        mu, delta, gradient = (tree.wide_zeros_like(params) for _ in range(3))
        nu = zero_moment(params)
        return ScaleByAdanState(numerics.first_step(), mu, delta, nu, gradient)

    def update(
        updates: Updates, state: ScaleByAdanState, params: Params
    ) -> tuple[Updates, ScaleByAdanState]:
        beta_1, beta_2, beta_3 = (numerics.hyper(b, state.step) for b in (b1, b2, b3))
        updates = squarable(updates, count=4)  # changes are up to twice as large
        change = tree.sub(updates, state.gradient)
        change = tree.where(state.step == 0, tree.zeros_like(change), change)
        ahead = tree.add(updates, tree.scale(beta_2, change))

        mu = tree.average(beta_1, state.mu, updates)
        delta = tree.average(beta_2, state.delta, change)
        nu = average_square(beta_3, state.nu, ahead)
        delta_hat = remove_bias(delta, beta_2, state.step)
        new_updates = divide_by_root(
            tree.add(
                remove_bias(mu, beta_1, state.step), tree.scale(beta_2, delta_hat)
            ),
            remove_bias(nu, beta_3, state.step),
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        step, gradient = numerics.next_step(state.step), jax.tree.map(jnp.copy, updates)
        return new_updates, ScaleByAdanState(step, mu, delta, nu, gradient)

    return chain(Transform(init, update, name="scale_by_adan"))


def adan(
    learning_rate: Hyper,
    b1: Hyper = 0.98,
    b2: Hyper = 0.92,
    b3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    proximal: bool = True,
) -> Transform:
    r"""Adan: look ahead along the average change of the gradient.

    With $d_t = g_t - g_{t-1}$ and $d_1 = 0$

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \delta_t = \beta_2\,\delta_{t-1} + (1 - \beta_2)\,d_t, \qquad
      \nu_t = \beta_3\,\nu_{t-1} + (1 - \beta_3)\,|g_t + \beta_2\,d_t|^2$$
    $$u_t = \frac{\hat\mu_t + \beta_2\,\hat\delta_t}
      {\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}, \qquad
      w_{t+1} = \frac{w_t - \alpha_t\,u_t}{1 + \alpha_t \lambda}$$

    where a hat divides by $1 - \beta^t$. With ``proximal=False`` decay is AdamW's,
    $-\alpha_t \lambda\,w_t$ beside the step.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        b3: $\beta_3$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units; optax's default is
            1e-8.
        weight_decay: $\lambda$, >= 0 if ``proximal``.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        proximal: whether decay is proximal, as above, or AdamW's.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adan(1e-3, weight_decay=0.02)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))
        [-0.00106  0.00108]

    References:
        Xie et al., Adan: adaptive Nesterov momentum algorithm for faster optimizing
        deep models, 2022, algorithm 1, https://arxiv.org/abs/2208.06677. Differs from
        it in: decays are one minus the paper's, and averages begin at zero and are
        corrected for it, as in the authors' code; there are no restarts. optax has
        $1 - \beta_2$ where the paper has $\beta_2$ (in these decays) before $d_t$ and
        $\hat\delta_t$; the first step is the same.
    """
    rule = scale_by_adan(b1, b2, b3, eps, eps_root)
    if not proximal:
        return decaying(rule, learning_rate, weight_decay, mask)
    return chain(
        rule,
        scale_by_learning_rate(learning_rate),
        proximal_decay(learning_rate, weight_decay, mask),
    )
