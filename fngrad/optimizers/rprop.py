"""Rprop: step sizes adapted by the signs of successive gradients."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decay_after_rate
from fngrad.transforms.scaling import check_learning_rate, scale
from fngrad.types import Hyper, Params, Selector, Updates


class ScaleByRpropState(NamedTuple):
    """State of `scale_by_rprop`."""

    step: jax.Array  # int32, shape ()
    step_sizes: Updates  # of the last update, in units of the parameters
    signs: Updates  # of the last gradient; 0 where it changed sign


def scale_by_rprop(
    learning_rate: Hyper,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step_size: Hyper = 1e-6,
    max_step_size: Hyper = 50.0,
) -> Transform:
    r"""Move each entry by a step size of its own: Rprop's direction.

    Returns $u_t$ of `rprop`; see there for the equations and the reference.

    Args:
        learning_rate: $\Delta_0$ >= 0, in units of the parameters, see `rprop`.
        eta_minus: $\eta^-$ in [0, 1].
        eta_plus: $\eta^+$ >= 1.
        min_step_size: $\Delta_{\min}$ >= 0, in units of the parameters.
        max_step_size: $\Delta_{\max}$ >= 0, in units of the parameters.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range.
    """
    check_learning_rate(learning_rate)
    numerics.check_number("eta_minus", eta_minus, 0.0, 1.0)
    numerics.check_number("eta_plus", eta_plus, low=1.0)
    numerics.check_number("min_step_size", min_step_size, low=0.0)
    numerics.check_number("max_step_size", max_step_size, low=0.0)

    def init(params: Params) -> ScaleByRpropState:
        tree.check_real("scale_by_rprop", params)
        sizes, signs = tree.wide_zeros_like(params), tree.wide_zeros_like(params)
        return ScaleByRpropState(numerics.first_step(), sizes, signs)

    def update(
        updates: Updates, state: ScaleByRpropState, params: Params
    ) -> tuple[Updates, ScaleByRpropState]:
        step = state.step
        first, minus, plus, low, high = numerics.hypers(
            step, learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
        )

        def resize(turn: jax.Array, size: jax.Array) -> jax.Array:
            dtype = size.dtype
            size = jnp.where(step == 0, first.astype(dtype), size)
            shrink_or_stay = jnp.where(turn < 0, minus.astype(dtype), 1)
            factor = jnp.where(turn > 0, plus.astype(dtype), shrink_or_stay)
            return jnp.clip(size * factor, low.astype(dtype), high.astype(dtype))

        signs = jax.tree.map(jnp.sign, updates)
        turns = jax.tree.map(jnp.multiply, signs, state.signs)
        sizes = jax.tree.map(resize, turns, state.step_sizes)
        signs = jax.tree.map(lambda turn, s: jnp.where(turn < 0, 0, s), turns, signs)
        new_updates = jax.tree.map(jnp.multiply, sizes, signs)
        return new_updates, ScaleByRpropState(numerics.next_step(step), sizes, signs)

    return chain(Transform(init, update, name="scale_by_rprop"))


def rprop(
    learning_rate: Hyper,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step_size: Hyper = 1e-6,
    max_step_size: Hyper = 50.0,
    *,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""Rprop: step sizes that grow until the gradient changes sign.

    Each coordinate moves downhill by its own step size $\Delta$, whatever the size of
    its gradient. With $c_t = \operatorname{sign}(g_t)\,s_{t-1}$, where $s_{t-1}$ is the
    last gradient's sign, $s_0 = 0$, and $\Delta_0$ the learning rate,

    $$\Delta_t = \operatorname{clip}(\eta\,\Delta_{t-1},
      \Delta_{\min}, \Delta_{\max}), \qquad
      \eta = \eta^+,\ \eta^-,\ 1 \quad\text{where } c_t > 0,\ < 0,\ = 0$$
    $$s_t = 0 \text{ where } c_t < 0, \text{ else } \operatorname{sign}(g_t), \qquad
      u_t = \Delta_t\,s_t, \qquad w_{t+1} = w_t - u_t$$

    A coordinate whose gradient changes sign does not move for one step, then resumes
    with the smaller step size. Use full-batch gradients: every sign that noise flips
    shrinks a step.

    Args:
        learning_rate: the first step size, >= 0, in units of the parameters. The rule
            reads it at the first update only; a schedule counts with its value at step
            0.
        eta_minus: $\eta^-$ in [0, 1].
        eta_plus: $\eta^+$ >= 1.
        min_step_size: $\Delta_{\min}$ >= 0, in units of the parameters.
        max_step_size: $\Delta_{\max}$ >= 0, in units of the parameters.
        weight_decay: $\lambda$, decoupled: $\lambda\,w_t$ times the learning rate, here
            that of the present step, is subtracted too, as in `adamw` and Keras.
            ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.rprop(0.5)
        >>> params, gradient = jnp.zeros(2), jnp.array([3.0, -0.1])
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(gradient, state, params)
        >>> print(updates)
        [-0.6  0.6]

    References:
        Riedmiller and Braun, A direct adaptive method for faster backpropagation
        learning: the RPROP algorithm, 1993, https://doi.org/10.1109/ICNN.1993.298623.
        Differs from it in: after a change of sign the last step is not taken back, as
        in PyTorch and in iRprop- (Igel and Hüsken, Improving the Rprop learning
        algorithm, 2000). Differs from optax in: an update is the present step, not the
        one before.
    """
    return chain(
        scale_by_rprop(
            learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
        ),
        scale(-1.0),
        *decay_after_rate(learning_rate, weight_decay, mask),
    )
