"""D-Adaptation: a growing lower bound on the distance to a solution as learning rate.

Inner products and norms go over all leaves. The parts return directions of ascent
with the step size in them; the recipes end in ``scale(-1.0)``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.leaves as leaves
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, telling
from fngrad.transforms.estimates import (
    adam_correction,
    check_adam,
    check_multiplier,
    inner_product,
    l1_norm,
    limit_growth,
    scalar,
)
from fngrad.transforms.iterates import difference, wide_copy
from fngrad.transforms.roots import divide_by_root, squarable
from fngrad.transforms.weights import add_weights, check_mask
from fngrad.types import Hyper, Metrics, Params, Scalar, Selector, Updates


class ScaleByDadaptAdamState(NamedTuple):
    """State of `scale_by_dadapt_adam`."""

    step: jax.Array  # int32, shape ()
    d: jax.Array  # shape (); the estimate, in force at the next step
    numerator: jax.Array  # shape ()
    mu: Updates  # average of the step size times g
    nu: Updates  # average of g**2
    grad_sum: Updates  # slower average of the step size times g

    signed = ("mu",)
    non_negative = ("nu",)


class ScaleByDadaptSgdState(NamedTuple):
    """State of `scale_by_dadapt_sgd`."""

    step: jax.Array  # int32, shape ()
    d: jax.Array  # shape (); the estimate, in force at the next step
    numerator: jax.Array  # shape ()
    first_norm: jax.Array  # shape (); of the first gradient that is not zero
    grad_sum: Updates  # sum of the step size times g
    params0: Params  # where it began


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
        TypeError: the learning rate is None; at ``init``, complex parameters.
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.
    """
    check_multiplier(learning_rate, estim_lr0, growth_rate)
    check_adam(betas, eps, weight_decay)

    def init(params: Params) -> ScaleByDadaptAdamState:
        leaves.check_real("dadapt_adamw", params)
        check_mask(mask, params)
        zeros = (tree.wide_zeros_like(params) for _ in range(3))
        step = numerics.first_step()
        return ScaleByDadaptAdamState(step, scalar(estim_lr0), scalar(0.0), *zeros)

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
        nu = tree.average(b2, state.nu, jax.tree.map(tree.abs_square, updates))
        d, numerator, grad_sum = _advance(state, updates, scaled, b2, eps_t, growth)
        direction = divide_by_root(mu, nu, inside=0.0, outside=eps_t)
        decay = rate * numerics.hyper(weight_decay, state.step)
        step = numerics.next_step(state.step)
        new_state = ScaleByDadaptAdamState(step, d, numerator, mu, nu, grad_sum)
        new_updates = add_weights(direction, params, decay, mask)
        return new_updates, new_state, {"d": state.d, "learning_rate": rate}

    return chain(telling(init, report, "scale_by_dadapt_adam"))


def _advance(
    state: ScaleByDadaptAdamState,
    updates: Updates,
    scaled: Updates,
    b2: jax.Array,
    eps: jax.Array,
    growth: jax.Array,
) -> tuple[jax.Array, jax.Array, Updates]:
    """Return the next d, numerator and sum; with a zero denominator d stays."""
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
    """The way back to D-Adaptation's iterate: see `fngrad.dadapt_sgd`.

    It reports ``d``, the estimated distance, and ``learning_rate``, the step size in
    force. The arguments are those of `fngrad.dadapt_sgd`.

    Raises:
        TypeError: the learning rate is None; at ``init``, complex parameters.
        ValueError: a number out of range.
    """
    check_multiplier(learning_rate, estim_lr0, growth_rate)
    numerics.check_number("momentum", momentum, 0.0, 1.0)

    def init(params: Params) -> ScaleByDadaptSgdState:
        leaves.check_real("dadapt_sgd", params)
        scalars = scalar(estim_lr0), scalar(0.0), scalar(0.0)
        sums, start = tree.wide_zeros_like(params), wide_copy(params)
        return ScaleByDadaptSgdState(numerics.first_step(), *scalars, sums, start)

    def report(
        updates: Updates, state: ScaleByDadaptSgdState, params: Params
    ) -> tuple[Updates, ScaleByDadaptSgdState, Metrics]:
        rate = state.d * numerics.hyper(learning_rate, state.step)
        updates, rate, first_norm, unit = _measure(updates, rate, state.first_norm)
        product = inner_product(updates, state.grad_sum, like=rate)
        numerator = _if_finite(state.numerator + rate * product, state.numerator)
        grad_sum = tree.add(state.grad_sum, tree.scale(rate, updates))
        length = tree.norm(grad_sum).astype(rate.dtype)
        bound = _if_finite(numerics.divide(2 * numerator, length), state.d)
        limited = limit_growth(bound, state.d, numerics.hyper(growth_rate, state.step))
        z = tree.sub(state.params0, grad_sum)
        towards = 1 - numerics.hyper(momentum, state.step)
        new_state = ScaleByDadaptSgdState(
            numerics.next_step(state.step),
            jnp.maximum(state.d, limited),
            numerator,
            first_norm,
            grad_sum,
            state.params0,
        )
        new_updates = tree.scale(towards, difference(params, z))
        told = {"d": state.d, "learning_rate": rate / unit}
        return new_updates, new_state, told

    return chain(telling(init, report, "scale_by_dadapt_sgd"))


class _Measured(NamedTuple):
    """A gradient and its step size, in units at which their products fit."""

    gradient: Updates  # over the unit
    rate: jax.Array  # times the unit
    first_norm: jax.Array  # shape ()
    unit: jax.Array  # shape (); 1, or a power of two where gradients are huge


def _measure(updates: Updates, rate: jax.Array, first_norm: jax.Array) -> _Measured:
    updates = _with_finite_norm(updates)
    norm = tree.norm(updates).astype(rate.dtype)
    first_norm = jnp.where(first_norm == 0, norm, first_norm)
    unit = jnp.where(first_norm > 2.0**64, 2.0**64, 1).astype(rate.dtype)
    gradient = jax.tree.map(lambda g: g / unit.astype(g.dtype), updates)
    return _Measured(
        gradient, numerics.divide(rate, first_norm / unit), first_norm, unit
    )


def _with_finite_norm(updates: Updates) -> Updates:
    """Return updates, or where their norm does not fit, as long as the largest float.

    What is not finite stays.
    """
    norm, rate = numerics.fitting_norm(tree.norm, updates)
    most = numerics.largest_square(norm.dtype)
    excess = jnp.where((rate < 1) & jnp.isfinite(norm), norm / (most * rate), 1)
    return jax.tree.map(lambda g: g / excess.astype(g.dtype), updates)


def _if_finite(new: jax.Array, old: jax.Array) -> jax.Array:
    """Return the new value, or the old one where float32 cannot hold the new."""
    return jnp.where(jnp.isfinite(new), new, old)
