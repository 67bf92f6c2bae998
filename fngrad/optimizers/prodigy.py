"""Prodigy: Adam's step size from a growing lower bound on the distance to a solution.

Inner products and norms are over all leaves. The part returns a direction of ascent
with the step size in it; the recipe ends in ``scale(-1.0)``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.decay import add_weights
from fngrad.transforms.distance_estimates import (
    check_adam,
    check_multiplier,
    inner_product,
    l1_norm,
    limit_growth,
)
from fngrad.transforms.moment_arithmetic import (
    adam_correction,
    divide_by_root,
    saturated_square,
    squarable,
)
from fngrad.transforms.scaling import scale
from fngrad.types import Hyper, Metrics, Params, Scalar, Selector, Updates


class Estimate(NamedTuple):
    """Prodigy's estimate of the distance, and the sums behind it."""

    d: jax.Array  # shape (), in force at the next step
    highest: jax.Array  # shape (); d without a bound on its growth
    numerator: jax.Array  # shape ()
    grad_sum: Updates  # decayed weighted sum of gradients


class ScaleByProdigyState(NamedTuple):
    """State of `scale_by_prodigy`."""

    step: jax.Array  # int32, shape ()
    estimate: Estimate
    mu: Updates  # average of d g
    nu: Updates  # average of (d g)**2
    params0: Params  # the first parameters

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


class _Values(NamedTuple):
    """Hyperparameters in force at a step."""

    b1: jax.Array
    b2: jax.Array
    b3: jax.Array
    eps: jax.Array
    d0: jax.Array
    coef: jax.Array
    growth: jax.Array
    step_size: jax.Array
    decay: jax.Array  # times the step size


def scale_by_prodigy(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    beta3: Hyper | None = None,
    eps: Hyper = 1e-8,
    estim_lr0: Scalar = 1e-6,
    estim_lr_coef: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    safeguard_warmup: bool = False,
    *,
    use_bias_correction: bool = True,
    growth_rate: Hyper = float("inf"),
    mask: Selector | None = None,
) -> Transform:
    """Adam's direction times Prodigy's step size: see `fngrad.prodigy`.

    It reports ``d``, the estimated distance, and ``learning_rate``, the step size in
    force. The arguments are those of `fngrad.prodigy`.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.
    """
    check_multiplier(learning_rate, estim_lr0, growth_rate)
    check_adam(betas, eps, weight_decay)
    numerics.check_positive("estim_lr_coef", estim_lr_coef)
    numerics.check_number("beta3", beta3, 0.0, 1.0, optional=True)

    def values(state: ScaleByProdigyState) -> _Values:
        at = functools.partial(numerics.hyper, step=state.step)
        b1, b2 = map(at, betas)
        b3 = jnp.sqrt(b2) if beta3 is None else at(beta3)
        size = state.estimate.d * at(learning_rate)
        if use_bias_correction:
            size = size * adam_correction(b1, b2, state.step)
        d0, coef, growth = numerics.hyper(estim_lr0), at(estim_lr_coef), at(growth_rate)
        decay = size * at(weight_decay)
        return _Values(b1, b2, b3, at(eps), d0, coef, growth, size, decay)

    def init(params: Params) -> ScaleByProdigyState:
        tree.check_real("prodigy", params)
        tree.check_mask(mask, params)
        start = _first_estimate(estim_lr0, params)
        mu, nu = tree.wide_zeros_like(params), tree.wide_zeros_like(params)
        step, params0 = numerics.first_step(), tree.wide_copy(params)
        return ScaleByProdigyState(step, start, mu, nu, params0)

    def report(
        updates: Updates, state: ScaleByProdigyState, params: Params
    ) -> tuple[Updates, ScaleByProdigyState, Metrics]:
        updates = squarable(updates)
        now = values(state)
        traveled = tree.difference(state.params0, params)
        estimate = _advance(now, state.estimate, updates, traveled, safeguard_warmup)
        weighted = tree.scale(state.estimate.d, updates)
        mu = tree.average(now.b1, state.mu, weighted)
        nu = tree.average(now.b2, state.nu, jax.tree.map(saturated_square, weighted))
        direction = divide_by_root(mu, nu, inside=0.0, outside=estimate.d * now.eps)
        steps = tree.scale(now.step_size, direction)
        new_updates = add_weights(steps, params, now.decay, mask)
        step = numerics.next_step(state.step)
        new_state = ScaleByProdigyState(step, estimate, mu, nu, state.params0)
        metrics = {"d": state.estimate.d, "learning_rate": now.step_size}
        return new_updates, new_state, metrics

    return chain(from_report(init, report, "scale_by_prodigy"))


def prodigy(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    beta3: Hyper | None = None,
    eps: Hyper = 1e-8,
    estim_lr0: Scalar = 1e-6,
    estim_lr_coef: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    safeguard_warmup: bool = False,
    *,
    use_bias_correction: bool = True,
    growth_rate: Hyper = float("inf"),
    mask: Selector | None = None,
) -> Transform:
    r"""Prodigy: AdamW whose learning rate is an estimated distance to a solution.

    With the estimate $d_t$, $\gamma_t$ the learning rate and
    $\eta_t = d_t\,\gamma_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)$,

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,d_t\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,d_t^2\,g_t^2$$
    $$r_t = \beta_3\,r_{t-1} + d_t\,\eta_t\,\langle g_t, w_0 - w_t\rangle, \qquad
      s_t = \beta_3\,s_{t-1} + d_t\,\eta_t\,g_t$$
    $$d_{t+1} = \max(d_t,\; c\,r_t / \|s_t\|_1), \qquad
      w_{t+1} = w_t - \eta_t \left(
      \frac{\mu_t}{\sqrt{\nu_t} + d_{t+1}\,\epsilon} + \lambda\,w_t \right)$$

    The products and norms are over all leaves. ``use_bias_correction=False`` is the
    default of the authors' code: $\eta_t = d_t\,\gamma_t$.

    Args:
        learning_rate: $\gamma$, a factor >= 0 of the estimate: a number, a scalar
            array or tracer, or a schedule.
        betas: $\beta_1$ and $\beta_2$ in [0, 1).
        beta3: $\beta_3$ in [0, 1]; ``None`` means $\sqrt{\beta_2}$.
        eps: $\epsilon$ >= 0, in gradient units.
        estim_lr0: $d_1$ > 0, in parameter units; smaller than any useful step.
        estim_lr_coef: $c$ > 0; tune it between 0.5 and 2 (``d_coef`` of the authors'
            code).
        weight_decay: $\lambda$, decoupled.
        safeguard_warmup: whether $s_t$ sums $d_t^2\,g_t$ instead, so that a warmup's
            small learning rates do not raise the estimate.
        use_bias_correction: whether $\eta_t$ has Adam's correction.
        growth_rate: the largest factor by which $d$ grows per step once it has left
            $d_1$, >= 1.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.prodigy(fg.schedules.cosine(1.0, 10_000))

    References:
        Mishchenko and Defazio, Prodigy: an expeditiously adaptive parameter-free
        learner, 2024, the Adam version, https://arxiv.org/abs/2306.06101. Differs from
        it in: $\eta_t$ has Adam's bias correction by default, as in optax. While all
        gradients or learning rates are zero, $d$ stays (optax: NaN) and moments and
        decay continue (the authors' code skips the step).
    """
    return chain(
        scale_by_prodigy(
            learning_rate,
            betas,
            beta3,
            eps,
            estim_lr0,
            estim_lr_coef,
            weight_decay,
            safeguard_warmup,
            use_bias_correction=use_bias_correction,
            growth_rate=growth_rate,
            mask=mask,
        ),
        scale(-1.0),
    )


def _first_estimate(estim_lr0: Scalar, params: Params) -> Estimate:
    return Estimate(
        d=numerics.scalar(estim_lr0),
        highest=numerics.scalar(estim_lr0),
        numerator=numerics.scalar(0.0),
        grad_sum=tree.wide_zeros_like(params),
    )


def _advance(
    now: _Values,
    old: Estimate,
    updates: Updates,
    traveled: Params,
    safeguard_warmup: bool,
) -> Estimate:
    """Return the next estimate; where the denominator is zero, d stays.

    All weights are divided by d0, which cancels, so small sums do not underflow.
    """
    relative = old.d / now.d0
    product = inner_product(updates, traveled, like=old.d)
    numerator = now.b3 * old.numerator + relative * now.step_size * product
    weight = relative * (old.d if safeguard_warmup else now.step_size)
    grad_sum = jax.tree.map(
        lambda s, g: numerics.scaled(now.b3, s) + numerics.scaled(weight, g),
        old.grad_sum,
        updates,
    )
    bound = now.coef * numerics.divide(numerator, l1_norm(grad_sum, like=old.d))
    highest = jnp.maximum(old.highest, bound)
    # The first growth beyond d0 has no limit.
    reached = jnp.where(old.d == now.d0, jnp.maximum(old.d, bound), old.d)
    return Estimate(
        limit_growth(highest, reached, now.growth), highest, numerator, grad_sum
    )
