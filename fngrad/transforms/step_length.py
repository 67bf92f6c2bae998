"""The length of the last step, with which the next line search begins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.types import Metrics, Params, Scalar, Updates


class StepLengthState(NamedTuple):
    """State of `scale_by_step_length`."""

    step: jax.Array  # int32, shape ()
    step_length: jax.Array  # float, shape ()


def scale_by_step_length(initial: Scalar = 1.0) -> Transform:
    r"""Multiply updates by a length that is kept in the state: $u \leftarrow a\,u$.

    The length changes only when `fngrad.steps.line_search` replaces it by the length
    that it found; the next search begins there. It reports ``step_length``.

    Args:
        initial: the first length, a number > 0.

    Raises:
        ValueError: if ``initial`` is a number that is not above 0.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.sgd(1.0), fg.scale_by_step_length())
    """
    numerics.check_positive("initial", initial)

    def init(params: Params) -> StepLengthState:
        length = numerics.hyper(initial)
        return StepLengthState(numerics.first_step(), length + jnp.zeros_like(length))

    def report(
        updates: Updates, state: StepLengthState, params: Params
    ) -> tuple[Updates, StepLengthState, Metrics]:
        new_state = StepLengthState(numerics.next_step(state.step), state.step_length)
        metrics = {"step_length": state.step_length}
        return tree.scale(state.step_length, updates), new_state, metrics

    return chain(from_report(init, report, "scale_by_step_length"))
