"""Simplified AdEMAMix: one sum of gradients, and the present gradient beside it."""

from __future__ import annotations

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_decay,
    check_moments,
    divide_by_root,
    remove_bias,
    squarable,
    zero_moment,
)
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleBySimplifiedAdemamixState(NamedTuple):
    """State of `scale_by_simplified_ademamix`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # decayed sum of g
    nu: Updates  # average of |g|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_simplified_ademamix(
    b1: Hyper = 0.99,
    b2: Hyper = 0.95,
    alpha: Hyper = 0.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
) -> Transform:
    r"""Divide a sum of gradients and the present one by their root mean square.

    Returns $u_t$ of `simplified_ademamix`; see there for the equations and the
    reference. Where the denominator is zero, the update is zero.

    Args:
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1).
        alpha: $a$, a ratio.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.

    Raises:
        ValueError: if a number is out of range.
    """
    check_decay("b1", b1, corrected=False)
    check_moments(b2=b2, eps=eps, eps_root=eps_root)
    numerics.check_number("alpha", alpha)

    def init(params: Params) -> ScaleBySimplifiedAdemamixState:
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleBySimplifiedAdemamixState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleBySimplifiedAdemamixState, params: Params
    ) -> tuple[Updates, ScaleBySimplifiedAdemamixState]:
        updates = squarable(updates)
        beta_1, beta_2, ratio = numerics.hypers(state.step, b1, b2, alpha)
        mu = tree.add(tree.scale(beta_1, state.mu), updates)
        nu = average_square(beta_2, state.nu, updates)
        new_updates = divide_by_root(
            tree.add(mu, tree.scale(ratio, updates)),
            remove_bias(nu, beta_2, state.step),
            inside=numerics.hyper(eps_root, state.step),
            outside=numerics.hyper(eps, state.step),
        )
        step = numerics.next_step(state.step)
        return new_updates, ScaleBySimplifiedAdemamixState(step, mu, nu)

    return chain(Transform(init, update, name="scale_by_simplified_ademamix"))


def simplified_ademamix(
    learning_rate: Hyper,
    b1: Hyper = 0.99,
    b2: Hyper = 0.95,
    alpha: Hyper = 0.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
) -> Transform:
    r"""Simplified AdEMAMix: accelerated SGD's momentum over Adam's denominator.

    $$\mu_t = \beta_1\,\mu_{t-1} + g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2$$
    $$u_t = \frac{\mu_t + a\,g_t}
      {\sqrt{\nu_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    The sum $\mu$ takes the place of AdEMAMix's slow average, and $a\,g_t$ that of its
    fast one: one array less. A sum grows to $1 / (1 - \beta_1)$ times an average, so
    the learning rate is about $1 - \beta_1$ times Adam's (at $a = 0$ and with a
    constant gradient, exactly), and early steps are short: it warms up by itself. With
    small batches a large $a$ (10 to 100) takes the place of AdEMAMix, with large ones
    0 is as good.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1]; `fngrad.half_life_warmup` raises it.
        b2: $\beta_2$ in [0, 1).
        alpha: $a$, a ratio.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> b1 = fg.half_life_warmup(0.9, 0.999, steps=10_000)
        >>> optimizer = fg.simplified_ademamix(1e-5, b1=b1, alpha=100.0)

    References:
        Morwani, Vyas, Zhang and Kakade, Connections between schedule-free optimizers,
        AdEMAMix, and accelerated SGD variants, 2025, section 4,
        https://arxiv.org/abs/2502.02431.
    """
    rule = scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root)
    return decaying(rule, learning_rate, weight_decay, mask)
