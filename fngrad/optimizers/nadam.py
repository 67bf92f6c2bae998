"""NAdam: state, transform and recipe."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_moments,
    divide_by_root,
    remove_bias,
    squarable,
    zero_moment,
)
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByNadamState(NamedTuple):
    """State of `scale_by_nadam`."""

    step: jax.Array  # int32, shape ()
    log_product: jax.Array  # log of beta(1) ... beta(t), float, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_nadam(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    momentum_decay: Hyper | None = None,
    debias_ahead: bool = True,
) -> Transform:
    r"""Look ahead from Adam's direction, with a momentum that may warm up: NAdam's.

    Returns $u_t$ of `nadam`; see there for the equations, the four rules in use and the
    references. The state has the same structure in all four. Where the denominator is
    zero, the update is zero.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        momentum_decay: $\psi$ >= 0, a rate per step; ``None`` is the limit
            $\psi \to \infty$.
        debias_ahead: whether the average is corrected for the weight it has one step
            ahead.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    numerics.check_number("momentum_decay", momentum_decay, low=0.0, optional=True)

    def init(params: Params) -> ScaleByNadamState:
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleByNadamState(numerics.first_step(), numerics.scalar(0.0), mu, nu)

    def fresh_weight(beta: jax.Array, step: jax.Array, t: jax.Array) -> jax.Array:
        """Return 1 - beta(t), the weight of a new gradient."""
        if momentum_decay is None:
            return 1 - beta
        rate = numerics.hyper(momentum_decay, step)
        return (1 - beta) + beta * 0.5 * 0.96 ** (t * rate)

    def update(
        updates: Updates, state: ScaleByNadamState, params: Params
    ) -> tuple[Updates, ScaleByNadamState]:
        beta_1, beta_2 = numerics.hypers(state.step, b1, b2)
        t = state.step.astype(beta_1.dtype) + 1
        now = fresh_weight(beta_1, state.step, t)
        later = fresh_weight(beta_1, state.step, t + 1)
        product = state.log_product + jnp.log1p(-now)
        weight = -jnp.expm1(product)
        ahead = -jnp.expm1(product + jnp.log1p(-later)) if debias_ahead else weight

        updates = squarable(updates)
        mu = tree.average(beta_1, state.mu, updates)
        nu = average_square(beta_2, state.nu, updates)
        new_updates = divide_by_root(
            tree.add(
                tree.scale((1 - later) / ahead, mu),
                tree.scale(now / weight, updates),
            ),
            remove_bias(nu, beta_2, state.step),
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        step = numerics.next_step(state.step)
        return new_updates, ScaleByNadamState(step, product, mu, nu)

    return chain(Transform(init, update, name="scale_by_nadam"))


def nadam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    momentum_decay: Hyper | None = None,
    debias_ahead: bool = True,
    decoupled_weight_decay: bool = True,
) -> Transform:
    r"""NAdam: Adam with Nesterov's look-ahead, and a momentum that may warm up.

    With Adam's averages $\mu_t$ (of decay $\beta_1$) and $\hat\nu_t$, a momentum that
    rises from about half of $\beta_1$ to $\beta_1$, and its products
    $\pi_t = \beta(1) \cdots \beta(t)$

    $$\beta(t) = \beta_1\,(1 - \tfrac12\,0.96^{t \psi})$$
    $$u_t = \frac{1}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}
      \left[\frac{\beta(t+1)\,\mu_t}{1 - \pi_{t+1}} +
      \frac{(1 - \beta(t))\,g_t}{1 - \pi_t}\right], \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    Four rules are in use:

    - ``momentum_decay=None``: $\beta(t) = \beta_1$ from the start, as in optax:
      ``adam(..., nesterov=True)`` in both libraries;
    - ``momentum_decay=4e-3, decoupled_weight_decay=False``: PyTorch's defaults, a rise
      over hundreds of steps;
    - ``momentum_decay=1.0, eps=1e-7``: Keras's and the paper's, over tens of steps;
    - ``debias_ahead=False``: AlgoPerf's NAdamW, with ``momentum_decay=None``, where
      $\pi_t$ is in both denominators.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        momentum_decay: $\psi$ >= 0, a rate per step; ``None`` is the limit
            $\psi \to \infty$.
        debias_ahead: whether the average is corrected for the weight it has one step
            ahead.
        decoupled_weight_decay: whether decay is decoupled, as above, or $\lambda\,w_t$
            is added to the gradient.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.nadam(1e-3, momentum_decay=4e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))
        [-0.001056  0.001056]

    References:
        Dozat, Incorporating Nesterov momentum into Adam, 2016, algorithm 2,
        https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Differs from it in:
        $\hat\nu$ lacks its factor $\beta_2$, and $\mu$ decays by $\beta_1$, not by
        $\beta(t)$, as in PyTorch and Keras. NAdamW: Choi et al., On empirical
        comparisons of optimizers for deep learning, 2019, table 1,
        https://arxiv.org/abs/1910.05446.
    """
    rule = scale_by_nadam(
        b1, b2, eps, eps_root, momentum_decay=momentum_decay, debias_ahead=debias_ahead
    )
    return decaying(
        rule, learning_rate, weight_decay, mask, decoupled=decoupled_weight_decay
    )
