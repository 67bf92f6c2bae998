"""Weight decay: decoupled, as L2 regularization, and as a proximal step."""

from typing import Any, NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.scaling import check_learning_rate, scale_by_learning_rate
from fngrad.types import Hyper, Params, Scalar, Selector, Updates


class DecayState(NamedTuple):
    """State of `add_decayed_weights`."""

    step: jax.Array  # int32, shape ()


class ProximalDecayState(NamedTuple):
    """State of `proximal_decay`."""

    step: jax.Array  # int32, shape ()
    chain_order = queries.LAST_CHANGE  # type: int


def add_decayed_weights(weight_decay: Hyper, mask: Selector | None = None) -> Transform:
    r"""Add a multiple of the parameters to the updates: $u \leftarrow u + \lambda w$.

    Its place in the chain decides which decay it is:

    - first, it is **L2 regularization**: the gradient of $\lambda \|w\|^2 / 2$ passes
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
        ValueError: if a number is NaN; at ``init``, if a glob selects no leaf.

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
        See `fngrad.adamw`.
    """
    numerics.check_number("weight_decay", weight_decay)

    def init(params: Params) -> DecayState:
        tree.check_mask(mask, params)
        return DecayState(numerics.first_step())

    def update(
        updates: Updates, state: DecayState, params: Params
    ) -> tuple[Updates, DecayState]:
        coefficient = numerics.hyper(weight_decay, state.step)
        new_updates = add_weights(updates, params, coefficient, mask)
        return new_updates, DecayState(numerics.next_step(state.step))

    return chain(Transform(init, update, name="add_decayed_weights"))


def proximal_decay(
    learning_rate: Hyper, weight_decay: Hyper, mask: Selector | None = None
) -> Transform:
    r"""Shrink the parameters after the step, not before it: decay as a proximal step.

    It comes last in a chain, after the learning rate, and replaces updates $u$ by

    $$\frac{w + u}{1 + \alpha_t \lambda} - w
      = \frac{u - \alpha_t \lambda\,w}{1 + \alpha_t \lambda}$$

    so that without gradients $w$ shrinks by the factor $1 / (1 + \alpha_t \lambda)$ per
    step, which no learning rate makes negative.

    Args:
        learning_rate: $\alpha$ >= 0, the factor that scaled the updates.
        weight_decay: $\lambda$ >= 0.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all. The
            other leaves' updates pass unchanged.

    Raises:
        ValueError: if a number is negative; at ``init``, if a glob selects no leaf.

    References:
        Zhuang et al., Understanding AdamW through proximal methods and scale-freeness,
        2022, https://arxiv.org/abs/2202.00089.
    """
    check_learning_rate(learning_rate)
    numerics.check_number("weight_decay", weight_decay, low=0.0)

    def init(params: Params) -> ProximalDecayState:
        tree.check_mask(mask, params)
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

        new_updates = jax.tree.map(shrink, tree.selected(mask, params), updates, params)
        return new_updates, ProximalDecayState(numerics.next_step(state.step))

    return chain(Transform(init, update, name="proximal_decay"))


def add_weights(
    updates: Updates, params: Params, factor: Scalar, mask: Selector | None
) -> Updates:
    """Return updates + factor * params where the mask selects, else updates."""

    def add(decays: bool, u: jax.Array, w: jax.Array) -> jax.Array:
        return u + numerics.scaled(factor, w.astype(u.dtype)) if decays else u

    return jax.tree.map(add, tree.selected(mask, params), updates, params)


def decaying(
    rule: Transform,
    learning_rate: Hyper,
    weight_decay: Hyper,
    mask: Selector | None,
    *,
    decoupled: bool = True,
) -> Transform:
    """Chain a rule, its weight decay and the learning rate.

    Args:
        rule: turns gradients into directions.
        learning_rate: a number >= 0, a scalar array or tracer, or a schedule.
        weight_decay: the multiple of the weights that is added.
        mask: which leaves decay; ``None`` means all.
        decoupled: whether it is added to the rule's direction, as in AdamW, or to the
            gradient that the rule sees: L2 regularization.
    """
    decay = add_decayed_weights(weight_decay, mask)
    parts = (rule, decay) if decoupled else (decay, rule)
    return chain(*parts, scale_by_learning_rate(learning_rate))
