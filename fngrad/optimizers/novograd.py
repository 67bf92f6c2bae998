"""NovoGrad: gradients normalized leaf by leaf."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.moment_arithmetic import (
    check_moments,
    divide_by_root,
    real_dtype,
    shrink,
)
from fngrad.transforms.momentum_buffers import trace
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByBlockNormState(NamedTuple):
    """State of `scale_by_block_norm`."""

    step: jax.Array  # int32, shape ()
    nu: Updates  # average of ||g||**2, one number per leaf


def scale_by_block_norm(
    b2: Hyper = 0.25, eps: Hyper = 1e-8, eps_root: Hyper = 0.0
) -> Transform:
    r"""Divide each leaf by the root of its averaged squared norm: NovoGrad's direction.

    Returns $u_t$ of `novograd`; see there for the equations and the reference. The
    average starts at the first squared norm and needs no bias correction. The default
    of ``eps`` differs from the recipe's, as in optax.

    Args:
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.

    Raises:
        ValueError: if a number is out of range.
    """
    check_moments(b2=b2, eps=eps, eps_root=eps_root, corrected=False)

    def init(params: Params) -> ScaleByBlockNormState:
        nu = tree.map_leaves(lambda p: tree.zeros(p, real_dtype(p), ()), params)
        return ScaleByBlockNormState(numerics.first_step(), nu)

    def update(
        updates: Updates, state: ScaleByBlockNormState, params: Params
    ) -> tuple[Updates, ScaleByBlockNormState]:
        beta_2 = numerics.hyper(b2, state.step)
        beta_2 = jnp.where(state.step == 0, 0, beta_2)
        inside, outside = numerics.hypers(state.step, eps_root, eps)

        def normalize(g: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
            square = jnp.sum(tree.abs_square(g))
            factor, square = shrink(square, g)
            g = numerics.scaled(factor, g)
            nu = tree.average(beta_2, nu, square)
            whole = jnp.broadcast_to(nu, g.shape)
            return divide_by_root(g, whole, inside, outside), nu

        new_updates, nu = tree.map_leaves(normalize, updates, state.nu, outputs=2)
        return new_updates, ScaleByBlockNormState(numerics.next_step(state.step), nu)

    return chain(Transform(init, update, name="scale_by_block_norm"))


def novograd(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.25,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
) -> Transform:
    r"""NovoGrad: gradients normalized leaf by leaf, then momentum and decay.

    For each leaf

    $$\nu_1 = \|g_1\|^2, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,\|g_t\|^2, \qquad
      u_t = \frac{g_t}{\sqrt{\nu_t + \bar\epsilon} + \epsilon}$$
    $$\mu_t = \beta_1\,\mu_{t-1} + u_t + \lambda\,w_t, \qquad
      w_{t+1} = w_t - \alpha_t\,\mu_t$$

    It keeps one moment of the size of the parameters, where Adam keeps two. Stacked
    layers (`fngrad.layers.repeat`, ``scan=True``) have one norm for all;
    `fngrad.layerwise` gives each its own.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1]; the paper has 0.25 and 0.98.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, inside the momentum.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.novograd(0.1)
        >>> params, gradient = jnp.zeros(2), jnp.array([3.0, 4.0])
        >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-0.06 -0.08]

    References:
        Ginsburg et al., Stochastic gradient methods with layer-wise adaptive moments
        for training of deep networks, 2019, algorithm 1,
        https://arxiv.org/abs/1905.11286. Differs from it in: $\epsilon$ counts at the
        first step too. Optax's ``scale_by_novograd`` is `scale_by_block_norm`, weight
        decay and `trace` in one.
    """
    numerics.check_number("b1", b1, 0.0, 1.0)
    return chain(
        scale_by_block_norm(b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        trace(b1),
        scale_by_learning_rate(learning_rate),
    )
