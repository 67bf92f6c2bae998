"""Weight decay."""

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.weights import add_weights, check_mask
from fngrad.types import Hyper, Params, Selector, Updates


class DecayState(NamedTuple):
    """State of `add_decayed_weights`."""

    step: jax.Array  # int32, shape ()


def add_decayed_weights(weight_decay: Hyper, mask: Selector | None = None) -> Transform:
    r"""Add a multiple of the parameters to the updates: $u \leftarrow u + \lambda w$.

    Its place in the chain says which decay it is:

    - first, it is **L2 regularisation**: the gradient of $\lambda \|w\|^2 / 2$ passes
      through everything that follows, and an adaptive rule divides it away;
    - just before the learning rate, it is **decoupled decay times the learning rate**
      (`fngrad.adamw`): without gradients $w \leftarrow (1 - \alpha_t \lambda)\,w$;
    - last, with a negative sign (``weight_decay=-0.01``), it is decay by itself,
      whatever the learning rate: $w \leftarrow (1 - 0.01)\,w$.

    Args:
        weight_decay: $\lambda$, a number, a scalar array or tracer, or a schedule.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all. The
            other leaves' updates pass unchanged.

    Raises:
        ValueError: NaN; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = {"weight": jnp.array([2.0]), "bias": jnp.array([2.0])}
        >>> l2 = fg.chain(fg.add_decayed_weights(0.1, "weight"), fg.sgd(0.5))
        >>> zero = {"weight": jnp.zeros(1), "bias": jnp.zeros(1)}
        >>> updates, _ = l2.update(zero, l2.init(params), params)
        >>> print(updates["weight"], updates["bias"])
        [-0.1] [-0.]

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019,
        https://arxiv.org/abs/1711.05101.
    """
    numerics.check_number("weight_decay", weight_decay)

    def init(params: Params) -> DecayState:
        check_mask(mask, params)
        return DecayState(numerics.first_step())

    def update(
        updates: Updates, state: DecayState, params: Params
    ) -> tuple[Updates, DecayState]:
        coefficient = numerics.hyper(weight_decay, state.step)
        new_updates = add_weights(updates, params, coefficient, mask)
        return new_updates, DecayState(numerics.next_step(state.step))

    return chain(Transform(init, update, name="add_decayed_weights"))
