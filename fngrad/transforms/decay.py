"""Weight decay: decoupled, as L2 regularization, cautious, and as a proximal step."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.scaling import check_learning_rate, scale_by_learning_rate
from fngrad.types import Hyper, Params, Scalar, Selector, Updates

AddFn: TypeAlias = Callable[[Scalar, jax.Array, jax.Array], jax.Array]


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

    return _adding("add_decayed_weights", weight_decay, mask, _add)


def add_cautious_weight_decay(
    weight_decay: Hyper = 0.0, mask: Selector | None = None
) -> Transform:
    r"""Add a multiple of the parameters where that agrees with the updates' sign.

    $$u_i \leftarrow u_i + \lambda\,w_i \quad\text{where}\quad
      u_i \cdot \lambda\,w_i \ge 0, \qquad\text{else}\quad u_i \leftarrow u_i$$

    so that the decay never works against the step: it pulls a weight towards zero only
    where the step does too, or where there is no step. For complex leaves
    $u \cdot w = \mathrm{Re}(\bar u w)$. Its place is that of decoupled decay in
    `add_decayed_weights`, for any rule:

    - before the learning rate, $\lambda > 0$:
      ``chain(scale_by_lion(), add_cautious_weight_decay(0.1),
      scale_by_learning_rate(1e-4))``;
    - after a whole optimizer, times its learning rate and negative:
      ``chain(muon(0.02), add_cautious_weight_decay(-0.02 * 0.1))``, with a schedule
      ``lambda t: -0.1 * learning_rate(t)``.

    Args:
        weight_decay: $\lambda$, a number, a scalar array or tracer, or a schedule.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all. The
            other leaves' updates pass unchanged.

    Raises:
        ValueError: if a number is NaN; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.sgd(1.0), fg.add_cautious_weight_decay(-0.5))
        >>> params, gradient = jnp.array([2.0, -2.0]), jnp.array([1.0, 1.0])
        >>> print(optimizer.update(gradient, optimizer.init(params), params)[0])
        [-2. -1.]

    References:
        Chen et al., Cautious weight decay, 2025, https://arxiv.org/abs/2510.12402.
    """
    numerics.check_number("weight_decay", weight_decay)

    def add(factor: Scalar, u: jax.Array, w: jax.Array) -> jax.Array:
        decay = numerics.scaled(factor, w)
        return jnp.where(numerics.agreement(u, decay) < 0, u, u + decay)

    return _adding("add_cautious_weight_decay", weight_decay, mask, add)


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

    return _add_where(_add, updates, params, factor, mask)


def optional_decay(
    weight_decay: Hyper | None, mask: Selector | None
) -> tuple[Transform, ...]:
    """Return the decay that a recipe puts before its learning rate, or nothing.

    Args:
        weight_decay: the multiple of the weights that is added. ``None`` keeps no
            part; any number, also 0, keeps one.
        mask: which leaves decay; it needs a decay.

    Raises:
        ValueError: if the number is NaN, or there is a mask but no decay.
    """
    if weight_decay is not None:
        return (add_decayed_weights(weight_decay, mask),)
    if mask is not None:
        raise ValueError(f"need a weight_decay to mask, got {mask=}")
    return ()


def decay_after_rate(
    learning_rate: Hyper, weight_decay: Hyper | None, mask: Selector | None
) -> tuple[Transform, ...]:
    """Return the decay that comes after the learning rate, times it, or nothing.

    Args:
        learning_rate: a number >= 0, a scalar array or tracer, or a schedule.
        weight_decay: see `optional_decay`.
        mask: see `optional_decay`.

    Raises:
        ValueError: as for `optional_decay`.
    """
    if weight_decay is None:
        return optional_decay(None, mask)
    numerics.check_number("weight_decay", weight_decay)
    return (_adding("add_decayed_weights", weight_decay, mask, _add, learning_rate),)


def decaying(
    rule: Transform,
    learning_rate: Hyper,
    weight_decay: Hyper,
    mask: Selector | None,
    *,
    decoupled: bool = True,
    cautious: bool = False,
) -> Transform:
    """Chain a rule, its weight decay and the learning rate.

    Args:
        rule: turns gradients into directions.
        learning_rate: a number >= 0, a scalar array or tracer, or a schedule.
        weight_decay: the multiple of the weights that is added.
        mask: which leaves decay; ``None`` means all.
        decoupled: whether it is added to the rule's direction, as in AdamW, or to the
            gradient that the rule sees: L2 regularization.
        cautious: whether it is added only where it agrees with the direction.
    """
    add = add_cautious_weight_decay if cautious else add_decayed_weights
    decay = add(weight_decay, mask)
    parts = (rule, decay) if decoupled else (decay, rule)
    return chain(*parts, scale_by_learning_rate(learning_rate))


def _add(factor: Scalar, u: jax.Array, w: jax.Array) -> jax.Array:
    return u + numerics.scaled(factor, w)


def _add_where(
    add: AddFn, updates: Updates, params: Params, factor: Scalar, mask: Selector | None
) -> Updates:
    """Return ``add(factor, u, w)`` where the mask selects, else the updates."""

    def added(decays: bool, u: jax.Array, w: jax.Array) -> jax.Array:
        return add(factor, u, w.astype(u.dtype)) if decays else u

    return jax.tree.map(added, tree.selected(mask, params), updates, params)


def _adding(
    name: str,
    weight_decay: Hyper,
    mask: Selector | None,
    add: AddFn,
    learning_rate: Hyper | None = None,
) -> Transform:
    """Return the part that adds a multiple of the weights.

    With a learning rate it comes after that, and the multiple is minus their product.
    """

    def init(params: Params) -> DecayState:
        tree.check_mask(mask, params)
        return DecayState(numerics.first_step())

    def update(
        updates: Updates, state: DecayState, params: Params
    ) -> tuple[Updates, DecayState]:
        factor = numerics.hyper(weight_decay, state.step)
        if learning_rate is not None:
            factor = -numerics.hyper(learning_rate, state.step) * factor
        new_updates = _add_where(add, updates, params, factor, mask)
        return new_updates, DecayState(numerics.next_step(state.step))

    return chain(Transform(init, update, name=name))
