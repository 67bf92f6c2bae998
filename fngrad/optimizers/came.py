"""CAME: Adafactor whose momentum is divided by how far it is from the update."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.optimizers.adafactor import (
    Factors,
    divide_by_factors,
    factored_axes,
    start_factors,
)
from fngrad.transforms.blocks import clip_rms
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    check_moments,
    divide_by_root,
    real_dtype,
    shrunk_leaf,
    squarable,
)
from fngrad.types import Hyper, Params, Scalar, Selector, Updates


class ScaleByCameState(NamedTuple):
    """State of `scale_by_came`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of the clipped update
    nu: Updates  # average of |g|**2 of leaves that are not factored, else None
    factors: Updates  # its row and column means of the others
    residuals: Updates  # the same of |update - mu|**2

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_came(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    eps: Hyper = 1e-30,
    eps_residual: Hyper = 1e-16,
    clipping_threshold: Scalar = 1.0,
    *,
    min_dim_size_to_factor: int = 1,
) -> Transform:
    r"""Divide Adafactor's momentum by the root of its residuals: CAME's direction.

    Returns $u_t$ of `came`; see there for the equations and the reference. Where a
    denominator is zero, the result is zero.

    Args:
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1].
        b3: $\beta_3$ in [0, 1].
        eps: $\epsilon_1$ >= 0, in squared gradient units.
        eps_residual: $\epsilon_2$ >= 0, a ratio.
        clipping_threshold: $d$ > 0, a ratio.
        min_dim_size_to_factor: a leaf is factored if both of its last axes are at least
            this long.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, b3=b3, eps=eps, corrected=False)
    numerics.check_number("eps_residual", eps_residual, low=0.0)
    numerics.check_positive("clipping_threshold", clipping_threshold)
    shortest = numerics.check_count("min_dim_size_to_factor", min_dim_size_to_factor)

    def axes_of(p: jax.Array) -> tuple[int, int] | None:
        return factored_axes(p.shape, longest=False, shortest=shortest)

    def init(params: Params) -> ScaleByCameState:
        def start(p: jax.Array) -> tuple[Any, Any, Any]:
            return *start_factors(p, axes_of(p)), start_factors(p, axes_of(p))[1]

        nu, factors, residuals = tree.map_leaves(start, params, outputs=3)
        mu = tree.wide_zeros_like(params)
        return ScaleByCameState(numerics.first_step(), mu, nu, factors, residuals)

    def update(
        updates: Updates, state: ScaleByCameState, params: Params
    ) -> tuple[Updates, ScaleByCameState]:
        beta_1, beta_2, beta_3 = numerics.hypers(state.step, b1, b2, b3)
        inside, residual, bound = numerics.hypers(
            state.step, eps, eps_residual, clipping_threshold
        )

        def direct(
            g: jax.Array, mu: jax.Array, nu: Any, factors: Any, residuals: Any
        ) -> tuple[jax.Array, jax.Array, Any, Any, Any]:
            if (axes := axes_of(g)) is None:
                g = squarable(g)
                square = tree.abs_square(g) + inside.astype(real_dtype(g))
                nu = tree.average(beta_2, nu, square)
                normal = clip_rms(divide_by_root(g, nu, 0.0, 0.0), bound)
                mu = tree.average(beta_1, mu, normal)
                return mu, mu, nu, None, None
            g = shrunk_leaf(g)
            square = tree.abs_square(g) + inside.astype(real_dtype(g))
            factors = tree.average(beta_2, factors, _means(square, axes))
            normal = clip_rms(divide_by_factors(g, factors, axes), bound)
            mu = tree.average(beta_1, mu, normal)
            apart = tree.abs_square(normal - mu) + residual.astype(real_dtype(mu))
            residuals = tree.average(beta_3, residuals, _means(apart, axes))
            return divide_by_factors(mu, residuals, axes), mu, nu, factors, residuals

        new_updates, *moments = tree.map_leaves(direct, updates, *state[1:], outputs=5)
        return new_updates, ScaleByCameState(numerics.next_step(state.step), *moments)

    return chain(Transform(init, update, name="scale_by_came"))


def came(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    eps: Hyper = 1e-30,
    eps_residual: Hyper = 1e-16,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    clipping_threshold: Scalar = 1.0,
    min_dim_size_to_factor: int = 1,
) -> Transform:
    r"""CAME: Adafactor with momentum that trusts a steady update more.

    For a matrix, with $s_t = |g_t|^2 + \epsilon_1$,

    $$r_t = \beta_2\,r_{t-1} + (1 - \beta_2)\operatorname{mean}_j s_t, \qquad
      k_t = \beta_2\,k_{t-1} + (1 - \beta_2)\operatorname{mean}_i s_t$$
    $$\hat u_t = g_t \Big/ \sqrt{\frac{r_t\,k_t^\top}{\operatorname{mean} r_t}}, \qquad
      \tilde u_t = \hat u_t / \max(1, \operatorname{rms}(\hat u_t) / d), \qquad
      \mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,\tilde u_t$$

    and with $R_t$ and $K_t$ the means of $|\tilde u_t - \mu_t|^2 + \epsilon_2$ over
    columns and rows, averaged with $\beta_3$,

    $$u_t = \mu_t \Big/ \sqrt{\frac{R_t\,K_t^\top}{\operatorname{mean} R_t}}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    A vector keeps all of $\nu_t$, as in `adafactor`, and has $u_t = \mu_t$. Beside the
    momentum a matrix has four vectors of state. Averages are not corrected for bias:
    the clipping bounds the first steps, but $R$ and $K$ begin at zero, so that steps
    are long until they fill; the authors warm up the learning rate, and take a smaller
    one than for Adam.

    Further axes index matrices, so that stacked layers (`fngrad.layers.repeat`,
    ``scan=True``) are factored apart; they are clipped together, and
    `fngrad.layerwise` clips each by itself.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1].
        b3: $\beta_3$ in [0, 1].
        eps: $\epsilon_1$ >= 0, in squared gradient units.
        eps_residual: $\epsilon_2$ >= 0, a ratio.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        clipping_threshold: $d$ > 0, a ratio.
        min_dim_size_to_factor: a leaf is factored if both of its last axes are at least
            this long; the others have $u_t = \mu_t$.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> warmup = fg.schedules.linear(0.0, 2e-4, 1000)
        >>> optimizer = fg.came(warmup, weight_decay=0.01, mask="**/weight")

    References:
        Luo et al., CAME: confidence-guided adaptive memory efficient optimization,
        2023, algorithm 2, https://arxiv.org/abs/2307.02047. Differs from it in: means
        take the place of sums, leaves of one axis are not factored, and decay is
        decoupled, as in the authors' code.
    """
    rule = scale_by_came(
        *(b1, b2, b3, eps, eps_residual, clipping_threshold),
        min_dim_size_to_factor=min_dim_size_to_factor,
    )
    return decaying(rule, learning_rate, weight_decay, mask)


def _means(x: jax.Array, axes: tuple[int, int]) -> Factors:
    row, column = axes
    return Factors(jnp.mean(x, column), jnp.mean(x, row))
