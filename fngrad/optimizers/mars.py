"""MARS: AdamW of gradients whose variance the last gradient reduces."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.clipping import shrink_onto
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_moments,
    divide_by_root,
    remove_bias,
    squarable,
    zero_moment,
)
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByMarsState(NamedTuple):
    """State of `scale_by_mars`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of the corrected gradient
    nu: Updates  # average of its |.|**2, real
    gradient: Updates  # the last g

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_mars(
    b1: Hyper = 0.95,
    b2: Hyper = 0.99,
    gamma: Hyper = 0.025,
    eps: Hyper = 1e-8,
    max_norm: Hyper = 1.0,
) -> Transform:
    r"""Run Adam on gradients corrected by their change: MARS's direction.

    Returns $u_t$ of `mars`; see there for the equations and the reference. Where the
    denominator is zero, the update is zero.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        gamma: $\gamma$ >= 0, a ratio.
        eps: $\epsilon$ >= 0, in units of the clipped gradient.
        max_norm: $n$ >= 0, in gradient units.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b1=b1, b2=b2, eps=eps)
    numerics.check_number("gamma", gamma, low=0.0)
    numerics.check_number("max_norm", max_norm, low=0.0)

    def init(params: Params) -> ScaleByMarsState:
        mu, gradient = (tree.wide_zeros_like(params) for _ in range(2))
        return ScaleByMarsState(
            numerics.first_step(), mu, zero_moment(params), gradient
        )

    def update(
        updates: Updates, state: ScaleByMarsState, params: Params
    ) -> tuple[Updates, ScaleByMarsState]:
        beta_1, beta_2, share = numerics.hypers(state.step, b1, b2, gamma)
        updates = squarable(updates)
        change = tree.sub(updates, state.gradient)
        change = tree.where(state.step == 0, tree.zeros_like(change), change)
        weight = share * beta_1 / (1 - beta_1)
        corrected = tree.add(updates, tree.scale(weight, change))
        bound = numerics.hyper(max_norm, state.step)

        def clip(c: jax.Array) -> jax.Array:
            return shrink_onto(bound, c, *numerics.fitting_norm(tree.norm, c))

        corrected = squarable(tree.map_leaves(clip, corrected))
        mu = tree.average(beta_1, state.mu, corrected)
        nu = average_square(beta_2, state.nu, corrected)
        new_updates = divide_by_root(
            remove_bias(mu, beta_1, state.step),
            remove_bias(nu, beta_2, state.step),
            inside=0.0,
            outside=numerics.hyper(eps, state.step),
        )
        step, gradient = numerics.next_step(state.step), jax.tree.map(jnp.copy, updates)
        return new_updates, ScaleByMarsState(step, mu, nu, gradient)

    return chain(Transform(init, update, name="scale_by_mars"))


def mars(
    learning_rate: Hyper,
    b1: Hyper = 0.95,
    b2: Hyper = 0.99,
    gamma: Hyper = 0.025,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    max_norm: Hyper = 1.0,
) -> Transform:
    r"""MARS-AdamW: AdamW of gradients corrected by how they change.

    With $d_t = g_t - g_{t-1}$ and $d_1 = 0$, for each leaf

    $$c_t = g_t + \gamma\,\frac{\beta_1}{1 - \beta_1}\,d_t, \qquad
      \tilde c_t = c_t \min\Big(1, \frac{n}{\|c_t\|}\Big)$$
    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,\tilde c_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|\tilde c_t|^2$$
    $$u_t = \frac{\mu_t / (1 - \beta_1^t)}
      {\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    The authors train only matrices with MARS, and the rest with AdamW:
    ``partition([(lambda path, leaf: leaf.ndim > 1, mars(3e-3)), ("**",
    adamw(3e-3, b2=0.95))])``. Stacked layers (`fngrad.layers.repeat`, ``scan=True``)
    have one norm for all; `fngrad.layerwise` gives each its own.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        gamma: $\gamma$ >= 0, the share of the correction; 0 is AdamW of clipped
            gradients.
        eps: $\epsilon$ >= 0, in units of the clipped gradient.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        max_norm: $n$ >= 0, in gradient units; infinity does not clip.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.mars(3e-3, weight_decay=0.01, mask="**/weight")

    References:
        Yuan, Liu, Wu, Zhou and Gu, MARS: unleashing the power of variance reduction for
        training large models, 2024, algorithm 2, https://arxiv.org/abs/2411.10438.
        Differs from it in: $g_{t-1}$ is the last batch's gradient, as in the authors'
        approximate form, not that of the present batch at the last parameters. From
        their code in: there $d_1 = g_1$.
    """
    rule = scale_by_mars(b1, b2, gamma, eps, max_norm)
    return decaying(rule, learning_rate, weight_decay, mask)
