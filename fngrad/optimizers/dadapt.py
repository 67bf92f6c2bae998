"""D-Adaptation: a growing lower bound on the distance to a solution as learning rate.

Inner products and norms are over all leaves. The parts return directions of ascent
with the step size in them; the recipes end in ``scale(-1.0)``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.decay import add_decayed_weights, add_weights
from fngrad.transforms.distance_estimates import (
    check_adam,
    check_multiplier,
    inner_product,
    l1_norm,
    limit_growth,
)
from fngrad.transforms.moment_arithmetic import (
    adam_correction,
    average_square,
    divide_by_root,
    squarable,
)
from fngrad.transforms.scaling import scale
from fngrad.types import Hyper, Metrics, Params, Scalar, Selector, Updates


class ScaleByDadaptAdamState(NamedTuple):
    """State of `scale_by_dadapt_adam`."""

    step: jax.Array  # int32, shape ()
    d: jax.Array  # shape (); the estimate, in force at the next step
    numerator: jax.Array  # shape ()
    mu: Updates  # average of the step size times g
    nu: Updates  # average of g**2
    grad_sum: Updates  # slower average of the step size times g

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


class ScaleByDadaptSgdState(NamedTuple):
    """State of `scale_by_dadapt_sgd`."""

    step: jax.Array  # int32, shape ()
    d: jax.Array  # shape (); the estimate, in force at the next step
    numerator: jax.Array  # shape ()
    first_norm: jax.Array  # shape (); of the first gradient that is not zero
    grad_sum: Updates  # sum of the step size times g
    params0: Params  # the first parameters


def scale_by_dadapt_adam(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    use_bias_correction: bool = True,
    growth_rate: Hyper = float("inf"),
    mask: Selector | None = None,
) -> Transform:
    """Adam's direction times D-Adaptation's step size: see `fngrad.dadapt_adamw`.

    It reports ``d``, the estimated distance, and ``learning_rate``, the step size in
    force. The arguments are those of `fngrad.dadapt_adamw`.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.
    """
    check_multiplier(learning_rate, estim_lr0, growth_rate)
    check_adam(betas, eps, weight_decay)

    def init(params: Params) -> ScaleByDadaptAdamState:
        tree.check_real("dadapt_adamw", params)
        tree.check_mask(mask, params)
        return ScaleByDadaptAdamState(
            step=numerics.first_step(),
            d=numerics.scalar(estim_lr0),
            numerator=numerics.scalar(0.0),
            mu=tree.wide_zeros_like(params),
            nu=tree.wide_zeros_like(params),
            grad_sum=tree.wide_zeros_like(params),
        )

    def report(
        updates: Updates, state: ScaleByDadaptAdamState, params: Params
    ) -> tuple[Updates, ScaleByDadaptAdamState, Metrics]:
        b1, b2 = (numerics.hyper(b, state.step) for b in betas)
        rate = state.d * numerics.hyper(learning_rate, state.step)
        if use_bias_correction:
            rate = rate * adam_correction(b1, b2, state.step)
        growth, eps_t = (numerics.hyper(h, state.step) for h in (growth_rate, eps))
        updates = squarable(updates)
        scaled = tree.scale(rate, updates)
        mu = tree.average(b1, state.mu, scaled)
        nu = average_square(b2, state.nu, updates)
        d, numerator, grad_sum = _advance(state, updates, scaled, b2, eps_t, growth)
        direction = divide_by_root(mu, nu, inside=0.0, outside=eps_t)
        decay = rate * numerics.hyper(weight_decay, state.step)
        step = numerics.next_step(state.step)
        new_state = ScaleByDadaptAdamState(step, d, numerator, mu, nu, grad_sum)
        new_updates = add_weights(direction, params, decay, mask)
        return new_updates, new_state, {"d": state.d, "learning_rate": rate}

    return chain(from_report(init, report, "scale_by_dadapt_adam"))


def _advance(
    state: ScaleByDadaptAdamState,
    updates: Updates,
    scaled: Updates,
    b2: jax.Array,
    eps: jax.Array,
    growth: jax.Array,
) -> tuple[jax.Array, jax.Array, Updates]:
    """Return the next d, numerator and sum; where the denominator is zero, d stays."""
    slow = jnp.sqrt(b2)
    normed = divide_by_root(state.grad_sum, state.nu, inside=0.0, outside=eps)
    product = inner_product(scaled, normed, like=slow)
    numerator = slow * state.numerator + (1 - slow) * product
    grad_sum = tree.average(slow, state.grad_sum, scaled)
    bound = numerics.divide(numerator, (1 - slow) * l1_norm(grad_sum, like=slow))
    limited = limit_growth(bound, state.d, growth)
    return jnp.maximum(state.d, limited), numerator, grad_sum


def scale_by_dadapt_sgd(
    learning_rate: Hyper = 1.0,
    momentum: Hyper = 0.0,
    estim_lr0: Scalar = 1e-6,
    *,
    growth_rate: Hyper = float("inf"),
) -> Transform:
    """The step to D-Adaptation's iterate: see `fngrad.dadapt_sgd`.

    It reports ``d``, the estimated distance, and ``learning_rate``, the step size in
    force. The arguments are those of `fngrad.dadapt_sgd`.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range.
    """
    check_multiplier(learning_rate, estim_lr0, growth_rate)
    numerics.check_number("momentum", momentum, 0.0, 1.0)

    def init(params: Params) -> ScaleByDadaptSgdState:
        tree.check_real("dadapt_sgd", params)
        return ScaleByDadaptSgdState(
            step=numerics.first_step(),
            d=numerics.scalar(estim_lr0),
            numerator=numerics.scalar(0.0),
            first_norm=numerics.scalar(0.0),
            grad_sum=tree.wide_zeros_like(params),
            params0=tree.wide_copy(params),
        )

    def report(
        updates: Updates, state: ScaleByDadaptSgdState, params: Params
    ) -> tuple[Updates, ScaleByDadaptSgdState, Metrics]:
        rate = state.d * numerics.hyper(learning_rate, state.step)
        now = _measure(updates, rate, state.first_norm)
        product = inner_product(now.gradient, state.grad_sum, like=now.rate)
        numerator = _if_finite(state.numerator + now.rate * product, state.numerator)
        grad_sum = tree.add(state.grad_sum, tree.scale(now.rate, now.gradient))
        length = tree.norm(grad_sum).astype(now.rate.dtype)
        bound = _if_finite(numerics.divide(2 * numerator, length), state.d)
        limited = limit_growth(bound, state.d, numerics.hyper(growth_rate, state.step))
        z = tree.sub(state.params0, grad_sum)
        towards = 1 - numerics.hyper(momentum, state.step)
        new_state = state._replace(
            step=numerics.next_step(state.step),
            d=jnp.maximum(state.d, limited),
            numerator=numerator,
            first_norm=now.first_norm,
            grad_sum=grad_sum,
        )
        new_updates = tree.scale(towards, tree.difference(params, z))
        metrics = {"d": state.d, "learning_rate": now.rate / now.unit}
        return new_updates, new_state, metrics

    return chain(from_report(init, report, "scale_by_dadapt_sgd"))


def dadapt_adamw(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    use_bias_correction: bool = True,
    growth_rate: Hyper = float("inf"),
    mask: Selector | None = None,
) -> Transform:
    r"""AdamW by D-Adaptation: its learning rate is an estimated distance to a solution.

    With the estimate $d_t$, $\gamma_t$ the learning rate, $b = \sqrt{\beta_2}$ and
    $\eta_t = d_t\,\gamma_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)$,

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,\eta_t\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,g_t^2$$
    $$r_t = b\,r_{t-1} + (1 - b)\,\eta_t\,
      \Big\langle g_t, \frac{s_{t-1}}{\sqrt{\nu_{t-1}} + \epsilon}\Big\rangle, \qquad
      s_t = b\,s_{t-1} + (1 - b)\,\eta_t\,g_t$$
    $$d_{t+1} = \max\Big(d_t,\; \frac{r_t}{(1 - b)\,\|s_t\|_1}\Big), \qquad
      w_{t+1} = w_t - \frac{\mu_t}{\sqrt{\nu_t} + \epsilon} - \eta_t\,\lambda\,w_t$$

    The products and norms are over all leaves. ``use_bias_correction=False`` is the
    default of the authors' code: $\eta_t = d_t\,\gamma_t$.

    Args:
        learning_rate: $\gamma$, a factor >= 0 of the estimate: a number, a scalar
            array or tracer, or a schedule.
        betas: $\beta_1$ and $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        estim_lr0: $d_1$ > 0, in parameter units; smaller than any useful step.
        weight_decay: $\lambda$, decoupled.
        use_bias_correction: whether $\eta_t$ has Adam's correction.
        growth_rate: the largest factor by which $d$ grows per step, >= 1.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.dadapt_adamw(weight_decay=0.01)

    References:
        Defazio and Mishchenko, Learning-rate-free learning by D-Adaptation, 2023, Adam
        with D-Adaptation, https://arxiv.org/abs/2301.07733. Differs from it in:
        $\eta_t$ has Adam's bias correction by default, as in optax. While all
        gradients or learning rates are zero, $d$ stays (optax: NaN).
    """
    return chain(
        scale_by_dadapt_adam(
            learning_rate,
            betas,
            eps,
            estim_lr0,
            weight_decay,
            use_bias_correction=use_bias_correction,
            growth_rate=growth_rate,
            mask=mask,
        ),
        scale(-1.0),
    )


def dadapt_sgd(
    learning_rate: Hyper = 1.0,
    momentum: Hyper = 0.0,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    growth_rate: Hyper = float("inf"),
    mask: Selector | None = None,
) -> Transform:
    r"""Gradient descent by D-Adaptation: its learning rate is an estimated distance.

    With the estimate $d_t$, $\gamma_t$ the learning rate and
    $\eta_t = d_t\,\gamma_t / \|g_1\|$,

    $$s_t = s_{t-1} + \eta_t\,g_t, \qquad
      d_{t+1} = \max\Big(d_t,\;
      \frac{2 \sum_{i \le t} \eta_i\,\langle g_i, s_{i-1}\rangle}{\|s_t\|}\Big)$$
    $$z_{t+1} = w_1 - s_t, \qquad
      w_{t+1} = \beta\,w_t + (1 - \beta)\,z_{t+1}$$

    The products and norms are over all leaves; twice the sum is
    $\|s_t\|^2 - \sum_i \eta_i^2 \|g_i\|^2$.

    Args:
        learning_rate: $\gamma$, a factor >= 0 of the estimate: a number, a scalar
            array or tracer, or a schedule.
        momentum: $\beta$ in [0, 1], how slowly the parameters follow $z$.
        estim_lr0: $d_1$ > 0, in parameter units; smaller than any useful step.
        weight_decay: $\lambda$, L2: $g_t$ is the gradient plus $\lambda\,w_t$.
        growth_rate: the largest factor by which $d$ grows per step, >= 1.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.dadapt_sgd(momentum=0.9)

    References:
        SGD with D-Adaptation, in the paper cited in `dadapt_adamw`. Differs from it in:
        a first gradient of zero is skipped (the authors' code divides by it), and the
        first norm has the decay in it.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_dadapt_sgd(
            learning_rate, momentum, estim_lr0, growth_rate=growth_rate
        ),
        scale(-1.0),
    )


class _Measured(NamedTuple):
    """A gradient and its step size, in units in which their products fit."""

    gradient: Updates  # over the unit
    rate: jax.Array  # times the unit
    first_norm: jax.Array  # shape ()
    unit: jax.Array  # shape (); 1, or a power of two where gradients are huge


def _measure(updates: Updates, rate: jax.Array, first_norm: jax.Array) -> _Measured:
    updates = _with_finite_norm(updates)
    norm = tree.norm(updates).astype(rate.dtype)
    first_norm = jnp.where(first_norm == 0, norm, first_norm)
    large = 1 / numerics.FITTING_RATE
    unit = jnp.where(first_norm > large, large, 1).astype(rate.dtype)
    gradient = jax.tree.map(lambda g: g / unit.astype(g.dtype), updates)
    rate = numerics.divide(rate, first_norm / unit)
    return _Measured(gradient, rate, first_norm, unit)


def _with_finite_norm(updates: Updates) -> Updates:
    """Return updates, scaled to the largest float where their norm overflows.

    Entries that are not finite stay.
    """
    norm, rate = numerics.fitting_norm(tree.norm, updates)
    most = numerics.largest_square(norm.dtype)
    excess = jnp.where((rate < 1) & jnp.isfinite(norm), norm / (most * rate), 1)
    return jax.tree.map(lambda g: g / excess.astype(g.dtype), updates)


def _if_finite(new: jax.Array, old: jax.Array) -> jax.Array:
    """Return the new value, or the old one where the new one overflows."""
    return jnp.where(jnp.isfinite(new), new, old)
