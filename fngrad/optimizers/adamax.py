"""Adamax: state, transform and recipe."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    check_decay,
    place_eps,
    remove_bias,
    zero_moment,
)
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByAdamaxState(NamedTuple):
    """State of `scale_by_adamax`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # decayed maximum of |g|, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_adamax(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    *,
    eps_in_max: bool = True,
) -> Transform:
    r"""Divide the debiased average by a decayed maximum: Adamax's direction.

    Returns $\hat\mu_t / \nu_t$ of `adamax`; see there for the equations and the
    reference. Where the denominator is zero, the update is zero.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in gradient units.
        eps_in_max: whether $\epsilon$ is inside the maximum, or added to it.

    Raises:
        ValueError: if a number is out of range.
    """
    check_decay("b1", b1, corrected=True)
    check_decay("b2", b2, corrected=False)
    numerics.check_number("eps", eps, low=0.0)

    def init(params: Params) -> ScaleByAdamaxState:
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleByAdamaxState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByAdamaxState, params: Params
    ) -> tuple[Updates, ScaleByAdamaxState]:
        beta_1, beta_2 = numerics.hypers(state.step, b1, b2)
        inside, outside = place_eps(numerics.hyper(eps, state.step), eps_in_max)

        def advance(nu: jax.Array, g: jax.Array) -> jax.Array:
            size = jnp.abs(g) + jnp.asarray(inside, nu.dtype)
            return jnp.maximum(numerics.scaled(beta_2, nu), size)

        def divide(m: jax.Array, nu: jax.Array) -> jax.Array:
            denominator = nu + jnp.asarray(outside, nu.dtype)
            return numerics.divide(m, denominator.astype(m.dtype))

        mu = tree.average(beta_1, state.mu, updates)
        nu = jax.tree.map(advance, state.nu, updates)
        mu_hat = remove_bias(mu, beta_1, state.step, bounded=True)
        new_updates = jax.tree.map(divide, mu_hat, nu)
        return new_updates, ScaleByAdamaxState(numerics.next_step(state.step), mu, nu)

    return chain(Transform(init, update, name="scale_by_adamax"))


def adamax(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    eps_in_max: bool = True,
    decoupled_weight_decay: bool = True,
) -> Transform:
    r"""Adamax: the averaged gradient over a decayed maximum of its modulus.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \max(\beta_2\,\nu_{t-1},\ |g_t| + \epsilon)$$
    $$\hat\mu_t = \frac{\mu_t}{1 - \beta_1^t}, \qquad
      w_{t+1} = w_t - \alpha_t\left(\frac{\hat\mu_t}{\nu_t} + \lambda\,w_t\right)$$

    or, with ``eps_in_max=False``, $\nu_t = \max(\beta_2\,\nu_{t-1}, |g_t|)$ and the
    denominator $\nu_t + \epsilon$. PyTorch and optax have the first form, Keras the
    second. The decay is that of optax's adamaxw.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        eps_in_max: whether $\epsilon$ is inside the maximum, or added to it.
        decoupled_weight_decay: whether decay is decoupled, as above, or $\lambda\,w_t$
            is added to the gradient, as in PyTorch.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adamax(2e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))
        [-0.002  0.002]

    References:
        Algorithm 2 of the paper cited in `adam`. Differs from it in: $\epsilon$ and
        decay.
    """
    rule = scale_by_adamax(b1, b2, eps, eps_in_max=eps_in_max)
    return decaying(
        rule, learning_rate, weight_decay, mask, decoupled=decoupled_weight_decay
    )
