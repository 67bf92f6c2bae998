"""Momentum: decayed sums and exponential averages of updates.

A *trace* sums past gradients with decaying weights; the weights of an *average* sum to
one. Both count steps, so that every hyperparameter may be a schedule.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decay_after_rate, optional_decay
from fngrad.transforms.moment_arithmetic import check_decay, remove_bias
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


class TraceState(NamedTuple):
    """State of `trace`."""

    step: jax.Array  # int32, shape ()
    trace: Updates  # decayed sum of gradients

    signed = ("trace",)  # type: tuple[str, ...]


class EmaState(NamedTuple):
    """State of `ema`."""

    step: jax.Array  # int32, shape ()
    ema: Updates  # average of the updates, biased towards zero

    signed = ("ema",)  # type: tuple[str, ...]


def trace(
    decay: Hyper,
    nesterov: bool = False,
    *,
    dampening: Hyper = 0.0,
    damp_first: bool = True,
) -> Transform:
    r"""Replace the gradient by a decayed sum of gradients: momentum.

    $$b_t = \beta\,b_{t-1} + (1 - \delta)\,g_t, \qquad b_0 = 0$$

    and the update is $b_t$, or $\beta\,b_t + (1 - \delta)\,g_t$ with Nesterov's
    look-ahead. Three forms are in use:

    - heavy ball, $\delta = 0$: weights grow to a sum of $1 / (1 - \beta)$;
    - exponential average, ``dampening=decay``: weights grow to a sum of one;
    - PyTorch's: the first gradient enters with weight one (``damp_first=False``).

    Args:
        decay: $\beta$ in [0, 1].
        nesterov: whether to look ahead.
        dampening: $\delta$ in [0, 1], the share of each gradient that is dropped.
        damp_first: whether $\delta$ holds for the first gradient too.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> heavy_ball = fg.trace(0.5)
        >>> params = jnp.zeros(2)
        >>> state = heavy_ball.init(params)
        >>> for _ in range(2):
        ...     updates, state = heavy_ball.update(jnp.array([1.0, 2.0]), state, params)
        >>> print(updates)
        [1.5 3. ]

    References:
        See `fngrad.sgd` and `fngrad.momentum`.
    """
    numerics.check_number("decay", decay, 0.0, 1.0)
    numerics.check_number("dampening", dampening, 0.0, 1.0)

    def init(params: Params) -> TraceState:
        return TraceState(numerics.first_step(), tree.wide_zeros_like(params))

    def update(
        updates: Updates, state: TraceState, params: Params
    ) -> tuple[Updates, TraceState]:
        beta = numerics.hyper(decay, state.step)
        weight = 1 - numerics.hyper(dampening, state.step)
        if not damp_first:
            weight = jnp.where(state.step == 0, jnp.ones_like(weight), weight)

        def advance(buffer: jax.Array, g: jax.Array) -> jax.Array:
            total = numerics.scaled(beta, buffer) + numerics.scaled(weight, g)
            return numerics.bounded(total, buffer, g)

        buffer = jax.tree.map(advance, state.trace, updates)
        new_updates = jax.tree.map(advance, buffer, updates) if nesterov else buffer
        return new_updates, TraceState(numerics.next_step(state.step), buffer)

    return chain(Transform(init, update, name="trace"))


def traced(momentum: Hyper | None, nesterov: bool) -> tuple[Transform, ...]:
    """Return the trace that a recipe puts into its chain, none without a momentum.

    Args:
        momentum: in [0, 1]. ``None`` keeps no buffer; any number, also 0, keeps one.
        nesterov: whether to look ahead; it needs a momentum.

    Raises:
        ValueError: if a number is out of range, or ``nesterov`` has no momentum.
    """
    if momentum is None:
        if nesterov:
            raise ValueError(f"need a momentum to look ahead, got {momentum=}")
        return ()
    numerics.check_number("momentum", momentum, 0.0, 1.0)
    return (trace(momentum, nesterov),)


def averaged(momentum: Hyper | None) -> tuple[Transform, ...]:
    """Return the average that a recipe puts into its chain, none without a momentum.

    Args:
        momentum: in [0, 1]. ``None`` keeps no average; any number, also 0, keeps one.

    Raises:
        ValueError: if the number is out of range.
    """
    numerics.check_number("momentum", momentum, 0.0, 1.0, optional=True)
    return () if momentum is None else (ema(momentum, debias=False),)


def descending(
    learning_rate: Hyper,
    momentum: Hyper | None,
    nesterov: bool,
    learning_rate_first: bool,
    weight_decay: Hyper | None,
    mask: Selector | None,
) -> tuple[Transform, ...]:
    """Return the trace, the decay and the learning rate that a recipe ends in.

    Args:
        learning_rate: a number >= 0, a scalar array or tracer, or a schedule.
        momentum: see `traced`.
        nesterov: see `traced`.
        learning_rate_first: whether the learning rate scales what enters the trace, or
            what leaves it. The decay does not enter the trace either way.
        weight_decay: see `fngrad.transforms.decay.optional_decay`.
        mask: which leaves decay.

    Raises:
        TypeError: if the learning rate is None.
        ValueError: as for `traced` and `optional_decay`, or if the learning rate is
            negative.
    """
    rate, buffer = scale_by_learning_rate(learning_rate), traced(momentum, nesterov)
    if learning_rate_first:
        decay = decay_after_rate(learning_rate, weight_decay, mask)
        return (rate, *buffer, *decay)
    return (*buffer, *optional_decay(weight_decay, mask), rate)


def ema(decay: Hyper, debias: bool = True) -> Transform:
    r"""Replace updates by their exponential average.

    $$m_t = \beta\,m_{t-1} + (1 - \beta)\,g_t, \qquad m_0 = 0$$

    and the update is $m_t / (1 - \beta^t)$ if ``debias``, else $m_t$.

    Args:
        decay: $\beta$, in [0, 1) if ``debias``, else in [0, 1].
        debias: whether to correct for the start at zero.

    Raises:
        ValueError: if a number is out of range.
    """
    check_decay("decay", decay, corrected=debias)

    def init(params: Params) -> EmaState:
        return EmaState(numerics.first_step(), tree.wide_zeros_like(params))

    def update(
        updates: Updates, state: EmaState, params: Params
    ) -> tuple[Updates, EmaState]:
        beta = numerics.hyper(decay, state.step)
        mean = tree.average(beta, state.ema, updates)
        new_state = EmaState(numerics.next_step(state.step), mean)
        if debias:
            mean = remove_bias(mean, beta, state.step, bounded=True)
        return mean, new_state

    return chain(Transform(init, update, name="ema"))
