"""MADGRAD: dual averaging with the cube root of a sum of squares."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.moment_arithmetic import squarable, zero_moment
from fngrad.transforms.scaling import check_learning_rate
from fngrad.types import Hyper, Metrics, Params, Selector, Updates


class ScaleByMadgradState(NamedTuple):
    """State of `scale_by_madgrad`; the sums define the iterate and are not moments."""

    step: jax.Array  # int32, shape ()
    start: Params  # the parameters that the first update saw, at least float32
    weighted_sum: Updates  # of g
    sum_of_squares: Updates  # weighted, of |g|**2; real
    chain_order = queries.LAST_CHANGE  # type: int


def scale_by_madgrad(
    learning_rate: Hyper, momentum: Hyper = 0.9, eps: Hyper = 1e-6
) -> Transform:
    r"""Step from the start by a scaled, weighted sum of all gradients: MADGRAD's step.

    Returns $u_t$ of `madgrad`; see there for the equations and the reference. The
    learning rate is inside the sums: this part must come last, and nothing after it may
    scale the update. It reports ``learning_rate``, its present value. Where $\nu_t$
    and $\epsilon$ are zero, $z_t$ is $w_1$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        momentum: $\beta$ in [0, 1]; with 0, $w_{t+1} = z_t$.
        eps: $\epsilon$ >= 0, in units of the cube root of $\nu$.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range.
    """
    check_learning_rate(learning_rate)
    numerics.check_number("momentum", momentum, 0.0, 1.0)
    numerics.check_number("eps", eps, low=0.0)

    def init(params: Params) -> ScaleByMadgradState:
        # The first update fills in the start: abstract parameters have no values.
        start, weighted_sum = (tree.wide_zeros_like(params) for _ in range(2))
        squares = zero_moment(params)
        return ScaleByMadgradState(numerics.first_step(), start, weighted_sum, squares)

    def report(
        updates: Updates, state: ScaleByMadgradState, params: Params
    ) -> tuple[Updates, ScaleByMadgradState, Metrics]:
        step, wide = state.step, tree.widen(params)
        added, rate = numerics.hypers(step, eps, learning_rate)
        weight = (rate + added) * jnp.sqrt(step.astype(rate.dtype) + 1)
        share = 1 - numerics.hyper(momentum, step)
        start = tree.where(step == 0, wide, state.start)
        updates = squarable(updates)
        weighted_sum = tree.add(state.weighted_sum, tree.scale(weight, updates))
        squares = jax.tree.map(tree.abs_square, updates)
        squares = tree.add(state.sum_of_squares, tree.scale(weight, squares))
        squares = jax.tree.map(numerics.saturated, squares, updates)

        def advance(
            origin: jax.Array, w: jax.Array, s: jax.Array, square: jax.Array
        ) -> jax.Array:
            root = numerics.cube_root(square) + added.astype(square.dtype)
            # In this order: the origin is often close to w, and large.
            return numerics.scaled(
                share, (origin - w) - numerics.divide(s, root.astype(s.dtype))
            )

        new_updates = jax.tree.map(advance, start, wide, weighted_sum, squares)
        step = numerics.next_step(step)
        new_state = ScaleByMadgradState(step, start, weighted_sum, squares)
        return new_updates, new_state, {"learning_rate": rate}

    return chain(from_report(init, report, "scale_by_madgrad"))


def madgrad(
    learning_rate: Hyper,
    momentum: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    eps: Hyper = 1e-6,
    mask: Selector | None = None,
) -> Transform:
    r"""MADGRAD: dual averaging from the first parameters, with momentum.

    With $g_t \leftarrow g_t + \lambda\,w_t$ and
    $\lambda_t = (\alpha_t + \epsilon) \sqrt t$

    $$s_t = s_{t-1} + \lambda_t\,g_t, \qquad
      \nu_t = \nu_{t-1} + \lambda_t\,|g_t|^2, \qquad
      z_t = w_1 - \frac{s_t}{\sqrt[3]{\nu_t} + \epsilon}$$
    $$u_t = (1 - \beta)\,(z_t - w_t), \qquad w_{t+1} = w_t + u_t$$

    so that $w_{t+1}$ is an average of the $z$. The learning rate is not comparable with
    that of other rules: the first step is $(1 - \beta)\,\alpha^{2/3}\,|g|^{1/3}$ (with
    $\epsilon = 0$).

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        momentum: $\beta$ in [0, 1]; with 0, $w_{t+1} = z_t$.
        weight_decay: $\lambda$ of the L2 regularization; often 0 is best.
        eps: $\epsilon$ >= 0, in units of the cube root of $\nu$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.madgrad(1e-3, momentum=0.0, eps=0.0)
        >>> params = jnp.array([8.0, -1.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-0.02  0.01]

    References:
        Defazio and Jelassi, Adaptivity without compromise: a momentumized, adaptive,
        dual averaged gradient method for stochastic optimization, 2021, algorithm 1,
        https://arxiv.org/abs/2101.11075. Differs from it in: $\epsilon$ is added to
        the learning rate too, as in the authors' code.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_madgrad(learning_rate, momentum, eps),
    )
