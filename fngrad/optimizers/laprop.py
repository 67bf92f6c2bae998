"""LaProp: momentum of normalized gradients, in place of normalized momentum."""

from __future__ import annotations

from typing import NamedTuple

import jax

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


class ScaleByLapropState(NamedTuple):
    """State of `scale_by_laprop`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of the normalized gradient
    nu: Updates  # average of |g|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_laprop(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-15,
    eps_root: Hyper = 0.0,
) -> Transform:
    r"""Average the gradients that are divided by their root mean square: LaProp.

    Returns $u_t$ of `laprop`; see there for the equations and the reference. Where the
    denominator is zero, the normalized gradient is zero.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByLapropState:
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleByLapropState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByLapropState, params: Params
    ) -> tuple[Updates, ScaleByLapropState]:
        updates = squarable(updates)
        beta_1, beta_2 = numerics.hypers(state.step, b1, b2)
        nu = average_square(beta_2, state.nu, updates)
        normal = divide_by_root(
            updates,
            remove_bias(nu, beta_2, state.step),
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        mu = tree.average(beta_1, state.mu, normal)
        new_updates = remove_bias(mu, beta_1, state.step, bounded=True)
        step = numerics.next_step(state.step)
        return new_updates, ScaleByLapropState(step, mu, nu)

    return chain(Transform(init, update, name="scale_by_laprop"))


def laprop(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-15,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
) -> Transform:
    r"""LaProp: Adam that normalizes each gradient before it enters the momentum.

    $$\nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2, \qquad
      \mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,
      \frac{g_t}{\sqrt{\nu_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}$$
    $$u_t = \frac{\mu_t}{1 - \beta_1^t}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    Adam divides old gradients by the present root mean square, LaProp by that of their
    own time: it bears any $\beta_1$ and $\beta_2$ together, and the step is bounded
    for small $\beta_2$ too. At $\beta_1 = 0$ the two are the same rule.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.laprop(1e-3, weight_decay=0.1)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-0.0013  0.0014]

    References:
        Ziyin, Wang and Ueda, LaProp: separating momentum and adaptivity in Adam, 2020,
        algorithm 1, https://arxiv.org/abs/2002.04839. Differs from it in: a scheduled
        learning rate scales the whole average; the authors' code averages the steps
        with the learning rates that they had.
    """
    rule = scale_by_laprop(b1, b2, eps, eps_root)
    return decaying(rule, learning_rate, weight_decay, mask)
