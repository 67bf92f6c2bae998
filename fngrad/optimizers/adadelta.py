"""Adadelta: state, transform and recipe."""

from __future__ import annotations

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_moments,
    divide_by_root,
    saturated_square,
    squarable,
    zero_moment,
)
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByAdadeltaState(NamedTuple):
    """State of `scale_by_adadelta`."""

    step: jax.Array  # int32, shape ()
    e_g: Updates  # average of |g|**2, real
    e_x: Updates  # average of |u|**2, real

    non_negative = ("e_g", "e_x")  # type: tuple[str, ...]


def scale_by_adadelta(rho: Hyper = 0.9, eps: Hyper = 1e-6) -> Transform:
    r"""Give gradients the root mean square of past updates: Adadelta's direction.

    Returns $u_t$ of `adadelta`; see there for the equations and the reference.

    Args:
        rho: $\rho$ in [0, 1].
        eps: $\epsilon$ >= 0, in squared gradient units and in squared units of the
            parameters: the size of the first updates, which are all zero without it.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(rho=rho, eps=eps, corrected=False)

    def init(params: Params) -> ScaleByAdadeltaState:
        e_g, e_x = zero_moment(params), zero_moment(params)
        return ScaleByAdadeltaState(numerics.first_step(), e_g, e_x)

    def update(
        updates: Updates, state: ScaleByAdadeltaState, params: Params
    ) -> tuple[Updates, ScaleByAdadeltaState]:
        updates = squarable(updates)
        decay, inside = numerics.hypers(state.step, rho, eps)
        e_g = average_square(decay, state.e_g, updates)

        def times_root(u: jax.Array, square: jax.Array) -> jax.Array:
            return u * numerics.square_root(
                square + inside.astype(square.dtype)
            ).astype(u.dtype)

        normal = divide_by_root(updates, e_g, inside, 0.0)
        new_updates = jax.tree.map(times_root, normal, state.e_x)
        squares = jax.tree.map(saturated_square, new_updates)
        e_x = tree.average(decay, state.e_x, squares)
        step = numerics.next_step(state.step)
        return new_updates, ScaleByAdadeltaState(step, e_g, e_x)

    return chain(Transform(init, update, name="scale_by_adadelta"))


def adadelta(
    learning_rate: Hyper = 1.0,
    rho: Hyper = 0.9,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
) -> Transform:
    r"""Adadelta: steps in units of past steps.

    $$E[g^2]_t = \rho\,E[g^2]_{t-1} + (1 - \rho)\,|g_t|^2, \qquad
      u_t = \frac{\sqrt{E[u^2]_{t-1} + \epsilon}}{\sqrt{E[g^2]_t + \epsilon}}\,g_t$$
    $$E[u^2]_t = \rho\,E[u^2]_{t-1} + (1 - \rho)\,|u_t|^2, \qquad
      w_{t+1} = w_t - \alpha_t\,u_t$$

    The paper has no learning rate; the default is 1. The first steps have the size
    $\sqrt{\epsilon / (1 - \rho)}$ and grow from there. PyTorch is the default; Keras is
    ``learning_rate=1e-3, rho=0.95, eps=1e-7``.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        rho: $\rho$ in [0, 1].
        eps: $\epsilon$ >= 0, in squared gradient units and in squared units of the
            parameters; with 0 all updates are zero.
        weight_decay: $\lambda$ of the L2 regularization: $\lambda\,w_t$ is added to
            $g_t$ first.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adadelta()
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(5))
        [-0.00316  0.00316]

    References:
        Zeiler, ADADELTA: an adaptive learning rate method, 2012, algorithm 1,
        https://arxiv.org/abs/1212.5701.
    """
    rule = scale_by_adadelta(rho, eps)
    return decaying(rule, learning_rate, weight_decay, mask, decoupled=False)
