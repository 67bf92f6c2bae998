"""The damping of a Levenberg-Marquardt step, kept in the optimizer's state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.transforms.core import Transform, chain
from fngrad.types import Params, Scalar, Updates


class DampingState(NamedTuple):
    """State of `adaptive_damping`."""

    step: jax.Array  # int32, shape ()
    damping: jax.Array  # float, shape (); at step 0 relative to the curvature
    growth: jax.Array  # float, shape (); the factor at the next rejection


def adaptive_damping(initial: Scalar = 1e-3) -> Transform:
    r"""Keep the damping that `fngrad.steps.levenberg_marquardt` adapts.

    Updates pass unchanged.

    Args:
        initial: $\tau$ > 0, the first damping relative to the curvature
            $\|J g\|^2 / \|g\|^2$ along the first gradient. With a small value
            (1e-6) the first step is a Gauss-Newton step, with 1 a cautious one.

    Raises:
        ValueError: if ``initial`` is a number that is not above 0.
    """
    numerics.check_positive("initial", initial)

    def init(params: Params) -> DampingState:
        damping = numerics.hyper(initial)
        zero = jnp.zeros_like(damping)
        return DampingState(numerics.first_step(), damping + zero, zero + 2)

    def update(
        updates: Updates, state: DampingState, params: Params
    ) -> tuple[Updates, DampingState]:
        return updates, state._replace(step=numerics.next_step(state.step))

    return chain(Transform(init, update, name="adaptive_damping"))
