"""AdEMAMix: a fast average of gradients and a very slow one, mixed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.schedules.core import Count, Curve, check_counts, progress
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
from fngrad.types import Hyper, Params, Scalar, Selector, Updates


class ScaleByAdemamixState(NamedTuple):
    """State of `scale_by_ademamix`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # fast average of g
    slow: Updates  # slow average of g
    nu: Updates  # average of |g|**2, real

    signed = ("mu", "slow")  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_ademamix(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    alpha: Hyper = 6.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
) -> Transform:
    r"""Add a multiple of a slow average to Adam's numerator: AdEMAMix's direction.

    Returns $u_t$ of `ademamix`; see there for the equations and the reference. Where
    the denominator is zero, the update is zero. The default of ``alpha`` differs from
    the recipe's, as in optax.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        b3: $\beta_3$ in [0, 1].
        alpha: $a$, a ratio.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    check_decay("b3", b3, corrected=False)
    numerics.check_number("alpha", alpha)

    def init(params: Params) -> ScaleByAdemamixState:
        mu, slow = tree.wide_zeros_like(params), tree.wide_zeros_like(params)
        nu = zero_moment(params)
        return ScaleByAdemamixState(numerics.first_step(), mu, slow, nu)

    def update(
        updates: Updates, state: ScaleByAdemamixState, params: Params
    ) -> tuple[Updates, ScaleByAdemamixState]:
        updates = squarable(updates)
        beta_1, beta_2, beta_3 = numerics.hypers(state.step, b1, b2, b3)
        ratio, inside, outside = numerics.hypers(state.step, alpha, eps_root, eps)
        mu = tree.average(beta_1, state.mu, updates)
        slow = tree.average(beta_3, state.slow, updates)
        nu = average_square(beta_2, state.nu, updates)
        share = tree.scale(ratio, slow)
        new_updates = divide_by_root(
            tree.add(remove_bias(mu, beta_1, state.step), share),
            remove_bias(nu, beta_2, state.step),
            inside=inside,
            outside=outside,
        )
        step = numerics.next_step(state.step)
        return new_updates, ScaleByAdemamixState(step, mu, slow, nu)

    return chain(Transform(init, update, name="scale_by_ademamix"))


def ademamix(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    alpha: Hyper = 5.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
) -> Transform:
    r"""AdEMAMix: AdamW with a second, very slow average of gradients.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      s_t = \beta_3\,s_{t-1} + (1 - \beta_3)\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2$$
    $$u_t = \frac{\mu_t / (1 - \beta_1^t) + a_t\,s_t}
      {\sqrt{\nu_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    The slow average reaches back over $1 / (1 - \beta_3)$ steps and is not corrected
    for bias: it fills slowly. It can make early training unstable: the paper raises $a$
    and $\beta_3$ over most of the run.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        b3: $\beta_3$ in [0, 1]; `fngrad.half_life_warmup` raises it.
        alpha: $a$, a ratio; ``schedules.linear(0.0, alpha, steps)`` raises it.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.ademamix(
        ...     1e-3,
        ...     b3=fg.half_life_warmup(0.9, 0.9999, steps=10_000),
        ...     alpha=fg.schedules.linear(0.0, 5.0, 10_000),
        ...     weight_decay=0.1,
        ... )

    References:
        Pagliardini, Ablin and Grangier, The AdEMAMix optimizer: better, faster, older,
        2024, algorithm 1, https://arxiv.org/abs/2409.03137.
    """
    rule = scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root)
    return decaying(rule, learning_rate, weight_decay, mask)


def half_life_warmup(init_value: Scalar, end_value: Scalar, steps: Count) -> Curve:
    r"""Raise a decay so that its half-life grows linearly.

    With decay $\beta$ a gradient's weight halves in $\log \tfrac12 / \log \beta$ steps,
    so with
    $f = \min(t / T, 1)$

    $$\frac{1}{\log \beta(t)} = \frac{1 - f}{\log \beta_0} + \frac{f}{\log \beta_T}$$

    If $\beta$ itself rose linearly, nearly all of the rise would be spent at half-lives
    of a few steps.

    Args:
        init_value: $\beta_0$ in [0, 1), the value at step 0.
        end_value: $\beta_T$ in [0, 1), the value from step $T$ on.
        steps: $T$ >= 0; at 0 the schedule begins at its end.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import fngrad as fg
        >>> b3 = fg.half_life_warmup(0.9, 0.9999, steps=1000)
        >>> print(*(f"{b3(step):.4f}" for step in (0, 500, 1000)))
        0.9000 0.9998 0.9999

    References:
        Section 3 of the paper cited in `ademamix`. Differs from it in: the first update
        is step 0, where the paper's is 1.
    """
    check_decay("init_value", init_value, corrected=True)
    check_decay("end_value", end_value, corrected=True)
    check_counts(0, steps=steps)

    def schedule(step: int | jax.Array) -> jax.Array:
        ahead, behind = progress(step, 0, steps)
        first, last = numerics.hyper(init_value), numerics.hyper(end_value)
        value = jnp.exp(1 / (ahead / jnp.log(first) + behind / jnp.log(last)))
        return jnp.where(behind == 0, first, jnp.where(ahead == 0, last, value))

    return schedule
