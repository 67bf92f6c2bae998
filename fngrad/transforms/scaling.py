"""Updates times a number: constants, learning rates, schedules."""

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.stateless import stateless
from fngrad.types import Hyper, Metrics, Params, Scalar, Schedule, Updates


class ScheduleState(NamedTuple):
    """State of a part that evaluates a schedule."""

    step: jax.Array  # int32, shape (); updates made so far


def scale(step_size: Scalar) -> Transform:
    r"""Multiply updates by a number: $u \leftarrow s\,u$.

    Args:
        step_size: $s$, a number or a scalar array; for schedules, `scale_by_schedule`.

    Raises:
        TypeError: at ``update``, if ``step_size`` is a schedule.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> descend = fg.scale(-0.5)
        >>> params = jnp.array([1.0, 2.0])
        >>> print(descend.update(params, descend.init(params), params)[0])
        [-0.5 -1. ]
    """

    return stateless(
        lambda updates, params: tree.scale(numerics.hyper(step_size), updates), "scale"
    )


def scale_by_learning_rate(
    learning_rate: Hyper, *, flip_sign: bool = True
) -> Transform:
    r"""Turn a direction of ascent into a step of descent: $u \leftarrow -\alpha_t u$.

    Reports ``learning_rate``, its present value.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule; the first update is step 0 of the schedule. All of them keep
            the same state.
        flip_sign: whether to multiply by $-\alpha$ or by $\alpha$.

    Raises:
        TypeError: if the learning rate is not a number, an array or a schedule.
        ValueError: if a number is negative or NaN; at ``update``, if a schedule's value
            is not a scalar.
    """
    check_learning_rate(learning_rate)
    sign = -1 if flip_sign else 1
    return _scale_by(
        "scale_by_learning_rate", learning_rate, reported="learning_rate", sign=sign
    )


def check_learning_rate(learning_rate: Hyper | None) -> None:
    """Raise unless a learning rate is valid.

    Raises:
        TypeError: if it is None, or not a number, an array or a schedule.
        ValueError: if a number is negative or NaN; arrays and schedules pass unread.
    """
    if learning_rate is None:
        raise TypeError("need a learning_rate, got None")
    numerics.check_number("learning_rate", learning_rate, low=0.0)


def scale_by_schedule(step_size_fn: Schedule) -> Transform:
    r"""Multiply updates by a schedule: $u \leftarrow s(t)\,u$, starting at $s(0)$.

    Reports ``step_size``, its present value.

    Args:
        step_size_fn: $s$, from the step (int32, shape ()) to a scalar.

    Raises:
        ValueError: at ``update``, if the schedule's value is not a scalar.
    """
    return _scale_by("scale_by_schedule", step_size_fn, reported="step_size")


def _scale_by(name: str, factor: Hyper, *, reported: str, sign: int = 1) -> Transform:
    def init(params: Params) -> ScheduleState:
        return ScheduleState(numerics.first_step())

    def report(
        updates: Updates, state: ScheduleState, params: Params
    ) -> tuple[Updates, ScheduleState, Metrics]:
        value = numerics.hyper(factor, state.step)
        new_state = ScheduleState(numerics.next_step(state.step))
        return tree.scale(sign * value, updates), new_state, {reported: value}

    return chain(from_report(init, report, name))
