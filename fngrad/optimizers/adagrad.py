"""Adagrad: the root of the sum of squared gradients over the whole run."""

from __future__ import annotations

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import optional_decay
from fngrad.transforms.moment_arithmetic import (
    bounded_squares,
    divide_by_root,
    full_moment,
    place_eps,
    squarable,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Scalar, Selector, Updates


class ScaleByRssState(NamedTuple):
    """State of `scale_by_rss`."""

    step: jax.Array  # int32, shape ()
    sum_of_squares: Updates  # real also for complex parameters

    non_negative = ("sum_of_squares",)  # type: tuple[str, ...]


def scale_by_rss(
    initial_accumulator_value: Scalar = 0.1,
    eps: Hyper = 1e-7,
    eps_in_sqrt: bool = True,
) -> Transform:
    r"""Divide by the root of the sum of squares: Adagrad's direction.

    Returns $u_t$ of `adagrad`; see there for the equations and the reference.

    Args:
        initial_accumulator_value: $s_0$ >= 0, in squared gradient units.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        eps_in_sqrt: whether $u_t$ has the first form or the second.

    Raises:
        ValueError: if a number is negative.
    """
    numerics.check_number(
        "initial_accumulator_value", initial_accumulator_value, low=0.0
    )
    numerics.check_number("eps", eps, low=0.0)

    def init(params: Params) -> ScaleByRssState:
        start = full_moment(params, initial_accumulator_value)
        return ScaleByRssState(numerics.first_step(), start)

    def update(
        updates: Updates, state: ScaleByRssState, params: Params
    ) -> tuple[Updates, ScaleByRssState]:
        sums = tree.add(state.sum_of_squares, bounded_squares(updates))
        sums = jax.tree.map(numerics.saturated, sums, updates)
        inside, outside = place_eps(numerics.hyper(eps, state.step), eps_in_sqrt)
        new_updates = divide_by_root(squarable(updates), sums, inside, outside)
        return new_updates, ScaleByRssState(numerics.next_step(state.step), sums)

    return chain(Transform(init, update, name="scale_by_rss"))


def adagrad(
    learning_rate: Hyper,
    initial_accumulator_value: Scalar = 0.1,
    eps: Hyper = 1e-7,
    eps_in_sqrt: bool = True,
    *,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""Adagrad: each coordinate's step divided by the root of its summed squares.

    $$s_t = s_{t-1} + |g_t|^2, \qquad w_{t+1} = w_t - \alpha_t\,u_t$$
    $$u_t = g_t / \sqrt{s_t + \epsilon}
      \quad\text{or}\quad u_t = g_t / (\sqrt{s_t} + \epsilon)$$

    A constant gradient gives steps of $\alpha / \sqrt t$ (with $s_0 = \epsilon = 0$). A
    coordinate that has seen no gradient yet ($s_t = 0$) does not move.

    PyTorch's convention is ``initial_accumulator_value=0.0, eps=1e-10,
    eps_in_sqrt=False``; the defaults are those of Keras and optax.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        initial_accumulator_value: $s_0$ >= 0, in squared gradient units.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        eps_in_sqrt: whether $u_t$ has the first form or the second.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. PyTorch's is L2 regularization:
            ``chain(add_decayed_weights(l), adagrad(a))``. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is negative; or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adagrad(1.0, initial_accumulator_value=0.0)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-1.  1.]

    References:
        Duchi, Hazan and Singer, Adaptive subgradient methods for online learning and
        stochastic optimization, 2011, https://jmlr.org/papers/v12/duchi11a.html.
        Differs from it in: there is only the diagonal rule, and the sum begins above
        zero by default.
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt),
        *optional_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
