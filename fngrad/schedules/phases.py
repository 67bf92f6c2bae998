"""Schedules of several phases: warm-ups, cycles and joins."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, Literal

import jax
import jax.numpy as jnp

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
    rise_to,
)
from fngrad.types import Scalar, Schedule

_CYCLE = ("init_value", "peak_value", "warmup_steps", "decay_steps")


def warmup_cosine(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Count,
    decay_steps: Count,
    end_value: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> Curve:
    r"""Rise in a straight line to a peak, then decay along a cosine.

    `linear` from ``init_value`` to ``peak_value`` for $t < W$, and then, with
    $f = \min((t - W) / (T - W),\ 1)$,

    $$s(t) = w\,P + (1 - w)\,E, \qquad
      w = \left[\tfrac12 (1 + \cos \pi f)\right]^p$$

    Args:
        init_value: the value at step 0.
        peak_value: $P$, the value at step $W$.
        warmup_steps: $W$, steps, >= 0; at 0 the schedule begins at its peak.
        decay_steps: $T$, steps, the length of the *whole* schedule, warm-up included.
        end_value: $E$, from step $T$ on.
        exponent: $p$, > 0.

    Raises:
        ValueError: if a number is out of range, or ``decay_steps <= warmup_steps``.

    Example:
        >>> from fngrad import schedules
        >>> schedule = schedules.warmup_cosine(0.0, 1.0, 10, decay_steps=110)
        >>> print(schedule(5), schedule(10), schedule(110))
        0.5 1.0 0.0
    """
    check_values(init_value=init_value, peak_value=peak_value, end_value=end_value)
    numerics.check_positive("exponent", exponent)
    check_counts(0, warmup_steps=warmup_steps)
    _check_order(warmup_steps=warmup_steps, decay_steps=decay_steps)

    def schedule(step: int | jax.Array) -> jax.Array:
        rise = rise_to(step, init_value, peak_value, warmup_steps)
        total, warmup = common_dtype(decay_steps, warmup_steps)
        ahead, _ = progress(step, warmup, total - warmup)
        weight = numerics.power(half_cosine(ahead), numerics.hyper(exponent))
        fall = mix(weight, peak_value, 1 - weight, end_value)
        return jnp.where(is_before(step, warmup_steps), rise, fall)

    return schedule


def inverse_sqrt(init_value: Scalar, peak_value: Scalar, warmup_steps: Count) -> Curve:
    r"""Rise in a straight line to a peak, then decay like $1 / \sqrt t$.

    `linear` from ``init_value`` to ``peak_value`` $P$ for $t < W$, then
    $s(t) = P \sqrt{\max(W, 1) / t}$: at $4 W$ half of the peak is left.

    Args:
        init_value: the value at step 0.
        peak_value: $P$, the value at step $W$.
        warmup_steps: $W$, steps, >= 0.

    Raises:
        ValueError: if a number is out of range.

    References:
        Vaswani et al., Attention is all you need, 2017,
        https://arxiv.org/abs/1706.03762, equation 3. Differs from it in: the peak is
        an argument in place of the model's width.
    """
    check_values(init_value=init_value, peak_value=peak_value)
    check_counts(0, warmup_steps=warmup_steps)

    def schedule(step: int | jax.Array) -> jax.Array:
        rise = rise_to(step, init_value, peak_value, warmup_steps)
        now, warmup = common_dtype(step, warmup_steps)
        ratio = as_float(jnp.maximum(warmup, 1)) / as_float(jnp.maximum(now, 1))
        fall = numerics.hyper(peak_value) * jnp.sqrt(ratio)
        return jnp.where(is_before(step, warmup_steps), rise, fall)

    return schedule


def warmup_stable_decay(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Count,
    stable_steps: Count,
    decay_steps: Count,
    end_value: Scalar = 0.0,
    power: Scalar = 1.0,
) -> Curve:
    r"""Rise to a peak, stay there, then decay: WSD, the trapezoid.

    `linear` from ``init_value`` to ``peak_value`` $P$ for $W$ steps, $P$ for $S$ more,
    and then, with $f = \min((t - W - S) / D,\ 1)$,

    $$s(t) = (1 - f^p)\,P + f^p\,E$$

    Args:
        init_value: the value at step 0.
        peak_value: $P$.
        warmup_steps: $W$, steps, >= 0.
        stable_steps: $S$, steps, >= 0.
        decay_steps: $D$, steps, >= 1: the length of the decay without the warm-up.
        end_value: $E$, from step $W + S + D$ on.
        power: $p$, > 0; 1 is a straight line, 0.5 the paper's "1-sqrt".

    Raises:
        ValueError: if a number is out of range.

    References:
        Hägele et al., Scaling laws and compute-optimal training beyond fixed training
        durations, 2024, https://arxiv.org/abs/2405.18392.
    """
    check_values(init_value=init_value, peak_value=peak_value, end_value=end_value)
    numerics.check_positive("power", power)
    check_counts(0, warmup_steps=warmup_steps, stable_steps=stable_steps)
    check_counts(1, decay_steps=decay_steps)

    def schedule(step: int | jax.Array) -> jax.Array:
        rise = rise_to(step, init_value, peak_value, warmup_steps)
        now, warmup = common_dtype(step, warmup_steps)
        since_peak = jnp.maximum(now - warmup, 0)
        _, behind = progress(since_peak, stable_steps, decay_steps)
        weight = numerics.power(behind, numerics.hyper(power))
        fall = mix(1 - weight, peak_value, weight, end_value)
        return jnp.where(is_before(step, warmup_steps), rise, fall)

    return schedule


def one_cycle(
    transition_steps: Count,
    peak_value: Scalar,
    pct_start: Scalar = 0.3,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
    *,
    pct_final: Scalar | None = None,
    anneal: Literal["cosine", "linear"] = "cosine",
) -> Curve:
    r"""Rise to a peak and fall to far below the start, in one cycle.

    From $I = P / d$ at step 0 to the peak $P$ at step $\lfloor p T \rfloor$, and to
    $I / d_f$ at step $T$; with ``pct_final`` first back to $I$, at step
    $\lfloor p_f T \rfloor$. In between it follows straight lines or half cosines.

    Args:
        transition_steps: $T$, steps, >= 1.
        peak_value: $P$.
        pct_start: $p$, the fraction of the cycle spent rising, in [0, 1).
        div_factor: $d$, > 0.
        final_div_factor: $d_f$, > 0.
        pct_final: $p_f$, between $p$ and 1, or None for two phases.
        anneal: "linear" with ``pct_final=0.85`` is the paper's.

    Raises:
        ValueError: if a number is out of range, or ``anneal`` is unknown.

    References:
        Smith and Topin, Super-convergence: very fast training of neural networks
        using large learning rates, 2018, https://arxiv.org/abs/1708.07120.
    """
    numerics.check_choice("anneal", anneal, ("cosine", "linear"))
    check_values(peak_value=peak_value)
    numerics.check_positive("div_factor", div_factor)
    numerics.check_positive("final_div_factor", final_div_factor)
    check_counts(1, transition_steps=transition_steps)
    _check_fractions(pct_start, pct_final)

    def schedule(step: int | jax.Array) -> jax.Array:
        peak = numerics.hyper(peak_value)
        first = peak / numerics.hyper(div_factor)
        last = first / numerics.hyper(final_div_factor)
        fractions = [pct_start] if pct_final is None else [pct_start, pct_final]
        knots = [_knot(p, transition_steps) for p in fractions]
        steps = [0, *knots, transition_steps]
        values = (
            [first, peak, last] if pct_final is None else [first, peak, first, last]
        )
        return _through(step, steps, values, anneal)

    return schedule


def cosine_restarts(cosine_kwargs: Iterable[Mapping[str, Any]]) -> Curve:
    """Join cycles of `warmup_cosine`, each from its own step 0: warm restarts.

    Args:
        cosine_kwargs: the arguments of each cycle's `warmup_cosine`, by name; its
            ``decay_steps`` is the length of the cycle. The last one stays at its end
            value.

    Raises:
        ValueError: if there is no cycle, an argument is missing, or a number is out of
            range.

    Example:
        >>> from fngrad import schedules
        >>> cycle = dict(init_value=1.0, peak_value=1.0, warmup_steps=0)
        >>> schedule = schedules.cosine_restarts(
        ...     [dict(cycle, decay_steps=10 * 2**i) for i in range(3)]
        ... )
        >>> print(schedule(0), schedule(10), schedule(30), schedule(70))
        1.0 1.0 1.0 0.0

    References:
        Loshchilov and Hutter, SGDR: Stochastic gradient descent with warm restarts,
        2017, https://arxiv.org/abs/1608.03983.
    """
    cycles = [dict(kwargs) for kwargs in cosine_kwargs]
    for cycle in cycles:
        missing = [name for name in _CYCLE if name not in cycle]
        if missing:
            raise ValueError(f"need each cycle's {missing[0]}, got {list(cycle)}")
    boundaries, end = [], 0
    for cycle in cycles[:-1]:
        end = end + cycle["decay_steps"]
        boundaries.append(end)
    return join([warmup_cosine(**cycle) for cycle in cycles], boundaries)


def join(schedules: Sequence[Schedule], boundaries: Sequence[Count]) -> Curve:
    """Follow one schedule after another, each from its own step 0.

    Args:
        schedules: at least one.
        boundaries: the steps at which the second, third, ... schedule begins: one fewer
            than schedules, >= 0, not decreasing.

    Raises:
        ValueError: if the numbers of schedules and boundaries do not fit, or a boundary
            is out of order.

    Example:
        >>> from fngrad import schedules
        >>> schedule = schedules.join(
        ...     [schedules.linear(0.0, 1.0, 10), schedules.constant(0.5)], [10]
        ... )
        >>> print(schedule(5), schedule(10))
        0.5 0.5
    """
    if not schedules or len(boundaries) != len(schedules) - 1:
        raise ValueError(
            "need at least one schedule, and one boundary fewer than schedules, "
            f"got {len(schedules)=} {len(boundaries)=}"
        )
    numbers = [0, *(b for b in boundaries if isinstance(b, Real))]
    if not all(a <= b for a, b in pairwise(numbers)):
        raise ValueError(f"need 0 <= boundaries, not decreasing, got {boundaries=}")

    def schedule(step: int | jax.Array) -> jax.Array:
        value = _strong(schedules[0](jnp.asarray(step)), step)
        for boundary, following in zip(boundaries, schedules[1:], strict=True):
            now, begin = common_dtype(step, boundary)
            later = _strong(following(jnp.maximum(now - begin, 0)), step)
            value = jnp.where(now < begin, value, later)
        return value

    return schedule


def _knot(fraction: Scalar, total: Count) -> Count:
    """Return the whole steps in a fraction of the total; numbers stay on the host."""
    if isinstance(fraction, Real) and isinstance(total, Real):
        return int(float(fraction) * float(total))
    (whole,) = common_dtype(total)
    return jnp.floor(numerics.hyper(fraction) * as_float(whole)).astype(whole.dtype)


def _through(
    step: Count, steps: list[Count], values: list[jax.Array], anneal: str
) -> jax.Array:
    """Interpolate through the points (steps, values)."""
    value = jnp.broadcast_to(values[0], jnp.shape(step))
    for begin, end, a, b in zip(steps, steps[1:], values, values[1:], strict=False):
        begin, end = common_dtype(begin, end)
        ahead, behind = progress(step, begin, end - begin)
        if anneal == "cosine":
            ahead, behind = half_cosine(ahead), half_cosine(behind)
        value = jnp.where(is_before(step, begin), value, ahead * a + behind * b)
    return value


def _strong(value: Scalar, step: Count) -> jax.Array:
    value = jnp.asarray(value).astype(jnp.result_type(float))
    return jnp.broadcast_to(value, jnp.shape(step))


def _check_order(warmup_steps: Count, decay_steps: Count) -> None:
    is_known = isinstance(warmup_steps, Real) and isinstance(decay_steps, Real)
    if is_known and not float(warmup_steps) < float(decay_steps):
        raise ValueError(
            "need warmup_steps < decay_steps, the length of the whole schedule, "
            f"got {warmup_steps=} {decay_steps=}"
        )
    check_counts(1, decay_steps=decay_steps)


def _check_fractions(pct_start: Scalar, pct_final: Scalar | None) -> None:
    numerics.check_number("pct_start", pct_start, low=0.0)
    numbers = [*(p for p in (pct_start, pct_final) if isinstance(p, Real)), 1.0]
    if not all(a < b for a, b in pairwise(numbers)):
        raise ValueError(
            f"need 0 <= pct_start < pct_final < 1, got {pct_start=} {pct_final=}"
        )
