"""Schedules of one phase: constants, decays and jumps."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
from fngrad.schedules.core import (
    Count,
    Curve,
    as_float,
    check_counts,
    check_values,
    common_dtype,
    half_cosine,
    is_before,
    mix,
    progress,
)
from fngrad.types import Scalar


def constant(value: Scalar) -> Curve:
    r"""Keep one value: $s(t) = v$.

    Args:
        value: $v$, a number, a scalar array or tracer.

    Raises:
        ValueError: if it is NaN.

    Example:
        >>> from fngrad import schedules
        >>> print(schedules.constant(0.1)(1000))
        0.1
    """
    check_values(value=value)

    def schedule(step: int | jax.Array) -> jax.Array:
        return jnp.broadcast_to(numerics.hyper(value), jnp.shape(step))

    return schedule


def linear(
    init_value: Scalar,
    end_value: Scalar,
    transition_steps: Count,
    transition_begin: Count = 0,
) -> Curve:
    r"""Go from one value to another in a straight line.

    $$s(t) = (1 - f)\,I + f\,E, \qquad f = \mathrm{clip}((t - B) / T,\ 0,\ 1)$$

    Args:
        init_value: $I$, until step $B$.
        end_value: $E$, from step $B + T$ on.
        transition_steps: $T$, steps, >= 1.
        transition_begin: $B$, steps, >= 0.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from fngrad import schedules
        >>> print(schedules.linear(1.0, 0.0, transition_steps=4)(1))
        0.75
    """
    check_values(init_value=init_value, end_value=end_value)
    check_counts(1, transition_steps=transition_steps)
    check_counts(0, transition_begin=transition_begin)

    def schedule(step: int | jax.Array) -> jax.Array:
        ahead, behind = progress(step, transition_begin, transition_steps)
        return mix(ahead, init_value, behind, end_value)

    return schedule


def polynomial(
    init_value: Scalar,
    end_value: Scalar,
    power: Scalar,
    transition_steps: Count,
    transition_begin: Count = 0,
) -> Curve:
    r"""Go from one value to another along a power of the fraction ahead.

    $$s(t) = w\,I + (1 - w)\,E, \qquad w = (1 - f)^p, \quad
      f = \mathrm{clip}((t - B) / T,\ 0,\ 1)$$

    Args:
        init_value: $I$, until step $B$.
        end_value: $E$, from step $B + T$ on.
        power: $p$, > 0; 1 is `linear`.
        transition_steps: $T$, steps, >= 1.
        transition_begin: $B$, steps, >= 0.

    Raises:
        ValueError: if a number is out of range.
    """
    check_values(init_value=init_value, end_value=end_value)
    numerics.check_positive("power", power)
    check_counts(1, transition_steps=transition_steps)
    check_counts(0, transition_begin=transition_begin)

    def schedule(step: int | jax.Array) -> jax.Array:
        ahead, _ = progress(step, transition_begin, transition_steps)
        weight = numerics.power(ahead, numerics.hyper(power))
        return mix(weight, init_value, 1 - weight, end_value)

    return schedule


def cosine(
    init_value: Scalar,
    decay_steps: Count,
    alpha: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> Curve:
    r"""Decay along half a period of a cosine.

    $$s(t) = w\,I + (1 - w)\,\alpha I, \qquad
      w = \left[\tfrac12 (1 + \cos \pi f)\right]^p, \quad
      f = \min(t / T,\ 1)$$

    Args:
        init_value: $I$, at step 0.
        decay_steps: $T$, steps, >= 1.
        alpha: the end value as a fraction of the first.
        exponent: $p$, > 0.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from fngrad import schedules
        >>> print(f"{schedules.cosine(1.0, decay_steps=100)(50):.4f}")
        0.5000

    References:
        Loshchilov and Hutter, SGDR: Stochastic gradient descent with warm restarts,
        2017, https://arxiv.org/abs/1608.03983, equation 5.
    """
    check_values(init_value=init_value, alpha=alpha)
    numerics.check_positive("exponent", exponent)
    check_counts(1, decay_steps=decay_steps)

    def schedule(step: int | jax.Array) -> jax.Array:
        ahead, _ = progress(step, 0, decay_steps)
        weight = numerics.power(half_cosine(ahead), numerics.hyper(exponent))
        end_value = numerics.hyper(alpha) * numerics.hyper(init_value)
        return mix(weight, init_value, 1 - weight, end_value)

    return schedule


def exponential(
    init_value: Scalar,
    transition_steps: Count,
    decay_rate: Scalar,
    transition_begin: Count = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Curve:
    r"""Multiply by a constant factor per ``transition_steps`` steps.

    $$s(t) = I\,r^{\max(t - B,\,0) / T}$$

    Args:
        init_value: $I$, until step $B$.
        transition_steps: $T$, the number of steps per factor $r$, >= 1.
        decay_rate: $r$, > 0. A Python number keeps all of its digits, an array those of
            its dtype: over a million steps 0.99999 rounded to float32 is 1.3 % off.
        transition_begin: $B$, steps, >= 0.
        staircase: whether the exponent is rounded down to an integer.
        end_value: a lower bound when $r < 1$, an upper bound when $r > 1$.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from fngrad import schedules
        >>> print(schedules.exponential(1.0, transition_steps=10, decay_rate=0.5)(20))
        0.25
    """
    check_values(init_value=init_value)
    numerics.check_number("end_value", end_value, optional=True)
    numerics.check_positive("decay_rate", decay_rate)
    check_counts(1, transition_steps=transition_steps)
    check_counts(0, transition_begin=transition_begin)
    missing = _lost_logarithm(decay_rate)

    def schedule(step: int | jax.Array) -> jax.Array:
        now, begin, period = common_dtype(step, transition_begin, transition_steps)
        since, period = jnp.maximum(now - begin, 0), jnp.maximum(period, 1)
        whole = as_float(since // period)  # in integers: a float quotient rounds up
        exponent = whole if staircase else as_float(since) / as_float(period)
        rate = numerics.hyper(decay_rate)
        value = numerics.hyper(init_value) * rate**exponent
        if missing:
            value = value * jnp.exp(exponent * numerics.hyper(missing))
        if end_value is None:
            return value
        bound = numerics.hyper(end_value)
        lowered, raised = jnp.minimum(value, bound), jnp.maximum(value, bound)
        return jnp.where(rate < 1, raised, lowered)

    return schedule


def _lost_logarithm(rate: Scalar) -> float:
    """Return the logarithm of the factor that rounding takes from a number."""
    if not isinstance(rate, Real):
        return 0.0
    kept = float(np.asarray(rate, jnp.result_type(float)))
    is_normal = 0 < kept < math.inf
    return math.log1p((float(rate) - kept) / kept) if is_normal else 0.0


def piecewise_constant(
    init_value: Scalar,
    boundaries_and_scales: Mapping[int, Scalar]
    | Sequence[tuple[Count, Scalar]]
    | None = None,
) -> Curve:
    r"""Multiply by a factor at each boundary: $s(t) = I \prod_{i: t \ge b_i} f_i$.

    Args:
        init_value: $I$, the value before the first boundary.
        boundaries_and_scales: the factor $f_i$ >= 0 by its step $b_i$ >= 0, or pairs
            $(b_i, f_i)$, which may be tracers.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from fngrad import schedules
        >>> schedule = schedules.piecewise_constant(1.0, {100: 0.5, 200: 0.5})
        >>> print(schedule(99), schedule(100), schedule(200))
        1.0 0.5 0.25
    """
    check_values(init_value=init_value)
    pairs: list[tuple[Count, Scalar]]
    if isinstance(boundaries_and_scales, Mapping):
        pairs = list(boundaries_and_scales.items())
    else:
        pairs = list(boundaries_and_scales or ())
    for boundary, factor in pairs:
        check_counts(0, boundary=boundary)
        numerics.check_number("scale", factor, low=0.0)

    def schedule(step: int | jax.Array) -> jax.Array:
        value = jnp.broadcast_to(numerics.hyper(init_value), jnp.shape(step))
        for boundary, factor in pairs:
            scaled = value * numerics.hyper(factor)
            value = jnp.where(is_before(step, boundary), value, scaled)
        return value

    return schedule
