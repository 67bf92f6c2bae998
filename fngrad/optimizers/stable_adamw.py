"""StableAdamW: AdamW with Adafactor's update clipping in place of gradient clipping."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_weights
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_moments,
    divide_by_root,
    remove_bias,
    squarable,
    zero_moment,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByStableAdamwState(NamedTuple):
    """State of `scale_by_stable_adamw`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g|**2, real

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu",)  # type: tuple[str, ...]


def scale_by_stable_adamw(
    b1: Hyper = 0.9,
    b2: Hyper = 0.99,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    clipping_threshold: Hyper = 1.0,
) -> Transform:
    r"""Divide AdamW's direction by how far gradients exceed their average.

    Returns $u_t$ of `stable_adamw`; see there for the equations and the reference.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        clipping_threshold: $d$ > 0, a ratio.

    Raises:
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.
    """
    check_moments(b1=b1, b2=b2, eps=eps)
    numerics.check_number("weight_decay", weight_decay)
    numerics.check_positive("clipping_threshold", clipping_threshold)

    def init(params: Params) -> ScaleByStableAdamwState:
        tree.check_mask(mask, params)
        mu, nu = tree.wide_zeros_like(params), zero_moment(params)
        return ScaleByStableAdamwState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByStableAdamwState, params: Params
    ) -> tuple[Updates, ScaleByStableAdamwState]:
        beta_1, beta_2, outside = numerics.hypers(state.step, b1, b2, eps)
        decay, bound = numerics.hypers(state.step, weight_decay, clipping_threshold)
        updates = squarable(updates)
        mu = tree.average(beta_1, state.mu, updates)
        nu = average_square(beta_2, state.nu, updates)
        nu_hat = remove_bias(nu, beta_2, state.step, bounded=True)
        new_updates = divide_by_root(
            remove_bias(mu, beta_1, state.step), nu_hat, 0.0, outside
        )
        new_updates = add_weights(new_updates, params, decay, mask)

        def clip(u: jax.Array, g: jax.Array, square: jax.Array) -> jax.Array:
            excess = _excess(g, square, outside) / bound.astype(square.dtype)
            return numerics.divided(u, jnp.maximum(excess, 1))

        new_updates = tree.map_leaves(clip, new_updates, updates, nu_hat)
        step = numerics.next_step(state.step)
        return new_updates, ScaleByStableAdamwState(step, mu, nu)

    return chain(Transform(init, update, name="scale_by_stable_adamw"))


def stable_adamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.99,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    clipping_threshold: Hyper = 1.0,
) -> Transform:
    r"""StableAdamW: AdamW whose steps shrink in leaves with sudden large gradients.

    With Adam's debiased averages $\hat\mu_t$ and $\hat\nu_t$ (see `adam`), for each
    leaf

    $$\rho_t = \operatorname{rms}\left(
      \frac{g_t}{\max(\sqrt{\hat\nu_t}, \epsilon)}\right), \qquad
      u_t = \frac{1}{\max(1, \rho_t / d)} \left(
      \frac{\hat\mu_t}{\sqrt{\hat\nu_t} + \epsilon} + \lambda\,w_t \right)$$
    $$w_{t+1} = w_t - \alpha_t\,u_t$$

    Where the second moment lags behind a gradient that grows, $\rho_t > 1$: the loss
    spikes of large models come a few steps after. It takes the place of clipping
    gradients. Stacked layers (`fngrad.layers.repeat`, ``scan=True``) have one
    $\rho_t$ for all; `fngrad.layerwise` gives each its own.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        clipping_threshold: $d$ > 0, a ratio; infinity is AdamW.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.stable_adamw(1e-3, weight_decay=0.1, mask="**/weight")

    References:
        Wortsman et al., Stable and low-precision training for large-scale
        vision-language models, 2023, algorithm 2, https://arxiv.org/abs/2304.13013.
    """
    return chain(
        scale_by_stable_adamw(b1, b2, eps, weight_decay, mask, clipping_threshold),
        scale_by_learning_rate(learning_rate),
    )


def _excess(g: jax.Array, square: jax.Array, eps: jax.Array) -> jax.Array:
    """Return the root mean square of g / max(sqrt(square), eps)."""
    root = jnp.maximum(numerics.square_root(square), eps.astype(square.dtype))
    normal = numerics.divide(g, root.astype(g.dtype))
    return tree.norm(normal) / math.sqrt(max(g.size, 1))
