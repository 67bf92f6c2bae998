"""Lion: state, transform and recipe."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByLionState(NamedTuple):
    """State of `scale_by_lion`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g

    signed = ("mu",)  # type: tuple[str, ...]


def scale_by_lion(b1: Hyper = 0.9, b2: Hyper = 0.99) -> Transform:
    r"""Take the sign of two averages' mean: Lion's direction.

    Returns $u_t$ of `lion`; see there for the equations and the reference.

    Args:
        b1: $\beta_1$ in [0, 1], the weight of the past in the update.
        b2: $\beta_2$ in [0, 1], the weight of the past in the average.

    Raises:
        TypeError: at ``init``, if a parameter is complex.
        ValueError: if a number is out of range.
    """
    check_decay("b1", b1, corrected=False)
    check_decay("b2", b2, corrected=False)

    def init(params: Params) -> ScaleByLionState:
        tree.check_real("scale_by_lion", params)
        return ScaleByLionState(numerics.first_step(), tree.wide_zeros_like(params))

    def update(
        updates: Updates, state: ScaleByLionState, params: Params
    ) -> tuple[Updates, ScaleByLionState]:
        blend = tree.average(numerics.hyper(b1, state.step), state.mu, updates)
        mu = tree.average(numerics.hyper(b2, state.step), state.mu, updates)
        new_state = ScaleByLionState(numerics.next_step(state.step), mu)
        return jax.tree.map(jnp.sign, blend), new_state

    return chain(Transform(init, update, name="scale_by_lion"))


def lion(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.99,
    weight_decay: Hyper = 1e-3,
    mask: Selector | None = None,
) -> Transform:
    r"""Step along the signs of a momentum: Lion, with decoupled weight decay.

    $$u_t = \operatorname{sign}(\beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t), \qquad
      \mu_t = \beta_2\,\mu_{t-1} + (1 - \beta_2)\,g_t$$
    $$w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    It keeps one moment where Adam keeps two. Every coordinate moves by $\alpha$: use a
    learning rate 3 to 10 times below Adam's, and a decay as much above.

    Args:
        learning_rate: $\alpha$, in units of the parameters: a number >= 0, a scalar
            array or tracer, or a schedule.
        b1: $\beta_1$ in [0, 1], the weight of the past in the update.
        b2: $\beta_2$ in [0, 1], the weight of the past in the average.
        weight_decay: $\lambda$; the default of Keras is no decay.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.lion(1e-4, weight_decay=0.0)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates)
        [-0.0001  0.0001]

    References:
        Chen et al., Symbolic discovery of optimization algorithms, 2023, algorithm 2,
        https://arxiv.org/abs/2302.06675.
    """
    rule = scale_by_lion(b1, b2)
    return decaying(rule, learning_rate, weight_decay, mask)
