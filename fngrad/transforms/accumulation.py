"""Gradient accumulation: several small batches as one large batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    trainable_leaves,
    unwrap,
    update_and_report,
    update_only,
    wrapper,
)
from fngrad.types import Metrics, OptState, Params, Updates


class AccumulateState(NamedTuple):
    """State of `accumulate`."""

    mini_step: jax.Array  # int32, shape (); gradients in the sum, below ``every``
    total: Updates  # their sum; None for leaves that are not trained
    inner: OptState


def accumulate(inner: TransformLike, every: int) -> Transform:
    r"""Give a transform the mean of ``every`` gradients at a time.

    $$u_t = \mathrm{inner}\Big(\frac{1}{k} \sum_{i = t - k + 1}^{t} g_i\Big)
      \quad\text{if}\quad k \mid t, \qquad\text{else}\quad u_t = 0$$

    In between, the parameters and the state of ``inner`` do not change, so k
    micro-batches of one size equal one batch of k times that size: a clip in ``inner``
    clips the mean, and schedules and averages in it count updates. The state holds the
    sum of gradients, in at least float32; ``every=1`` is ``inner`` itself, without a
    sum. A sum that is incomplete when training ends is dropped.

    It reports ``mini_step``, the index of this gradient among the k, from 0, and what
    ``inner`` reports for the mean so far.

    Args:
        inner: the transform of the means, usually a whole optimizer.
        every: $k$ >= 1, an int.

    Raises:
        ValueError: if ``every`` is not an int >= 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer, params = fg.accumulate(fg.sgd(1.0), every=2), jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> for gradient in jnp.array([[1.0, 0.0], [3.0, 2.0]]):
        ...     updates, state = optimizer.update(gradient, state, params)
        ...     print(updates)
        [0. 0.]
        [-2. -1.]
    """
    every = numerics.check_count("every", every, low=1)
    if every == 1:
        return chain(inner)
    within = unwrap(inner)

    def trainable_part(a: Any, params: Params) -> Any:
        return tree.keep(trainable_leaves(within, params), a)

    def init(params: Params) -> AccumulateState:
        total = tree.wide_zeros_like(trainable_part(params, params))
        return AccumulateState(numerics.first_step(), total, within.init(params))

    def apply(
        update_fn: UpdateFn, total: Any, updates: Any, state: OptState, params: Any
    ) -> tuple[Updates, AccumulateState, Metrics]:
        whole = _mean(total, every, updates)
        made, new, metrics = update_fn(within, whole, state.inner, params)
        empty = tree.zeros_like(total)
        return made, AccumulateState(numerics.first_step(), empty, new), metrics

    def wait(
        update_fn: UpdateFn, total: Any, updates: Any, state: OptState, params: Any
    ) -> tuple[Updates, AccumulateState, Metrics]:
        waiting = AccumulateState(state.mini_step + 1, total, state.inner)
        if update_fn is update_only:
            return tree.zeros_like(updates), waiting, {}
        so_far = _mean(total, state.mini_step + 1, updates)
        _, _, metrics = update_fn(within, so_far, state.inner, params)
        return tree.zeros_like(updates), waiting, metrics

    # Built once: in eager mode, new functions would compile at every call.
    branches: dict[UpdateFn, list[Callable[..., Any]]] = {
        update_fn: [functools.partial(branch, update_fn) for branch in (apply, wait)]
        for update_fn in (update_only, update_and_report)
    }

    def advance(
        update_fn: UpdateFn, updates: Updates, state: AccumulateState, params: Params
    ) -> tuple[Updates, AccumulateState, Metrics]:
        total = tree.add(state.total, trainable_part(updates, params))
        operands = total, updates, state, params
        is_last = state.mini_step == every - 1
        made, new, metrics = jax.lax.cond(is_last, *branches[update_fn], *operands)
        return made, new, {"mini_step": state.mini_step, **metrics}

    return chain(wrapper(init, advance, "accumulate", within.trainable))


def _mean(total: Updates, count: jax.Array | int, updates: Updates) -> Updates:
    """Return total / count; zeros for leaves that are not trained."""
    mean = jax.tree.map(lambda x: x / jnp.asarray(count).astype(x.dtype), total)
    return tree.merge(mean, tree.zeros_like(updates))
