"""Weight decay as a proximal step."""

from typing import Any, NamedTuple

import jax

import fngrad.numerics as numerics
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.weights import check_mask, selected
from fngrad.types import Hyper, Params, Selector, Updates


class ProximalDecayState(NamedTuple):
    """State of `proximal_decay`."""

    step: jax.Array  # int32, shape ()


def proximal_decay(
    learning_rate: Hyper, weight_decay: Hyper, mask: Selector | None = None
) -> Transform:
    r"""Shrink where a step would lead, not where it starts: decay as a proximal step.

    It stands last in a chain, after the learning rate: of updates $u$ it makes

    $$\frac{w + u}{1 + \alpha_t \lambda} - w
      = \frac{u - \alpha_t \lambda\,w}{1 + \alpha_t \lambda}$$

    so that without gradients $w$ shrinks by $1 / (1 + \alpha_t \lambda)$ a step, which
    no learning rate makes negative.

    Args:
        learning_rate: $\alpha$ >= 0, what scaled the updates before.
        weight_decay: $\lambda$ >= 0.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all. The
            other leaves' updates pass unchanged.

    Raises:
        ValueError: a negative number; at ``init``, a glob that selects no leaf.

    References:
        Zhuang et al., Understanding AdamW through proximal methods and scale-freeness,
        2022, https://arxiv.org/abs/2202.00089.
    """
    numerics.check_number("learning_rate", learning_rate, low=0.0)
    numerics.check_number("weight_decay", weight_decay, low=0.0)

    def init(params: Params) -> ProximalDecayState:
        check_mask(mask, params)
        return ProximalDecayState(numerics.first_step())

    def update(
        updates: Updates, state: ProximalDecayState, params: Params
    ) -> tuple[Updates, ProximalDecayState]:
        rate = numerics.hyper(learning_rate, state.step)
        rate = rate * numerics.hyper(weight_decay, state.step)
        shrunk, share = 1 / (1 + rate), rate / (1 + rate)

        def shrink(decays: bool, u: jax.Array, w: Any) -> jax.Array:
            if not decays:
                return u
            return numerics.scaled(shrunk, u) - numerics.scaled(
                share, w.astype(u.dtype)
            )

        new_updates = jax.tree.map(shrink, selected(mask, params), updates, params)
        return new_updates, ProximalDecayState(numerics.next_step(state.step))

    return chain(Transform(init, update, name="proximal_decay"))
