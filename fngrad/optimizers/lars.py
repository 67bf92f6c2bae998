"""LARS: momentum with one trust ratio per leaf."""

from __future__ import annotations

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.decay import add_weights
from fngrad.transforms.momentum_buffers import traced
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.transforms.trust_ratio import (
    TrustRatios,
    TrustRatioState,
    apply_ratios,
    fitting_norms,
    norms,
    trust_ratios,
)
from fngrad.types import Hyper, Metrics, Params, Selector, Updates


def scale_by_lars(
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    trust_coefficient: Hyper = 0.001,
    eps: Hyper = 0.0,
    trust_ratio_mask: Selector | None = None,
    *,
    separate_norms: bool = False,
) -> Transform:
    r"""Add the decay and multiply by the trust ratio: LARS's direction.

    Returns $u_t$ of `lars`; see there for the equations and the reference. It reports
    ``smallest_ratio`` and ``largest_ratio`` among the selected leaves.

    Args:
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        trust_coefficient: $\eta$ >= 0.
        eps: $\epsilon$ >= 0, in gradient units.
        trust_ratio_mask: which leaves are scaled; ``None`` means all. The others have
            $\rho = 1$.
        separate_norms: whether $\rho$ has the second form (the paper's) or the first
            (optax's).

    Raises:
        ValueError: if a number is negative; at ``init``, if a glob selects no leaf.
    """
    numerics.check_number("weight_decay", weight_decay)
    numerics.check_number("trust_coefficient", trust_coefficient, low=0.0)
    numerics.check_number("eps", eps, low=0.0)

    def init(params: Params) -> TrustRatioState:
        tree.check_mask(mask, params)
        tree.check_mask(trust_ratio_mask, params)
        return TrustRatioState(numerics.first_step())

    def decay_and_compare(
        updates: Updates, step: jax.Array, params: Params
    ) -> tuple[Updates, TrustRatios]:
        decay, coefficient, outside = numerics.hypers(
            step, weight_decay, trust_coefficient, eps
        )
        decayed, param_norms = add_weights(updates, params, decay, mask), norms(params)
        update_norms, scales = fitting_norms(updates if separate_norms else decayed)
        if separate_norms:
            update_norms = jax.tree.map(
                lambda d, g, w, scale: g + decay * w * scale if d else g,
                tree.selected(mask, params),
                update_norms,
                param_norms,
                scales,
            )
        return decayed, trust_ratios(
            coefficient, param_norms, update_norms, outside, scales
        )

    def report(
        updates: Updates, state: TrustRatioState, params: Params
    ) -> tuple[Updates, TrustRatioState, Metrics]:
        updates, ratios = decay_and_compare(updates, state.step, params)
        return apply_ratios(trust_ratio_mask, ratios, updates, state, params)

    return chain(from_report(init, report, "scale_by_lars"))


def lars(
    learning_rate: Hyper,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    trust_coefficient: Hyper = 0.001,
    eps: Hyper = 0.0,
    trust_ratio_mask: Selector | None = None,
    momentum: Hyper | None = 0.9,
    nesterov: bool = False,
    *,
    separate_norms: bool = False,
) -> Transform:
    r"""Momentum with steps in proportion to each layer's parameters: LARS.

    For each leaf

    $$\rho_t = \eta\,\frac{\|w_t\|}{\|g_t + \lambda\,w_t\| + \epsilon}
      \quad\text{or}\quad
      \rho_t = \eta\,\frac{\|w_t\|}{\|g_t\| + \lambda\,\|w_t\| + \epsilon}$$
    $$u_t = \rho_t\,(g_t + \lambda\,w_t), \qquad
      b_t = \beta\,b_{t-1} + \alpha_t\,u_t, \qquad
      w_{t+1} = w_t - b_t$$

    or, with ``nesterov``, $w_{t+1} = w_t - \beta\,b_t - \alpha_t\,u_t$. Where either
    of the compared norms is zero, $\rho_t = 1$. Stacked layers (`fngrad.layers.repeat`,
    ``scan=True``) have one norm for all; `fngrad.layerwise` gives each its own.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        trust_coefficient: $\eta$ >= 0.
        eps: $\epsilon$ >= 0, in gradient units.
        trust_ratio_mask: which leaves have a trust ratio; ``None`` means all. Biases
            and the parameters of norms are often left out of both masks.
        momentum: $\beta$ in [0, 1]. ``None`` keeps no buffer; any number, also 0, keeps
            one.
        nesterov: whether to look ahead; it needs a momentum.
        separate_norms: whether $\rho_t$ has the second form (the paper's) or the first
            (optax's).

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.lars(1.0, trust_coefficient=0.1)
        >>> params, gradient = jnp.array([3.0, 4.0]), jnp.array([0.0, 200.0])
        >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        >>> print(updates.round(4))  # a tenth of the norm, 5
        [ 0.  -0.5]

    References:
        You, Gitman and Ginsburg, Large batch training of convolutional networks, 2017,
        equation 6 and algorithm 1, https://arxiv.org/abs/1708.03888. Differs from it
        in: ``separate_norms`` is off, as in optax; without decay it makes no
        difference.
    """
    return chain(
        scale_by_lars(
            weight_decay,
            mask,
            trust_coefficient,
            eps,
            trust_ratio_mask,
            separate_norms=separate_norms,
        ),
        scale_by_learning_rate(learning_rate),
        *traced(momentum, nesterov),
    )
