"""Gradient accumulation: several small batches as one, its size also by schedule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.programs.keywords_elsewhere import explains_keywords
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
from fngrad.types import Metrics, OptState, Params, Schedule, Updates


class AccumulateState(NamedTuple):
    """State of `accumulate`."""

    mini_step: jax.Array  # int32, shape (); gradients in the sum, below ``every``
    total: Updates  # their sum; None for leaves that are not trained
    inner: OptState


class ScheduledAccumulateState(NamedTuple):
    """State of `accumulate` with a schedule."""

    mini_step: jax.Array  # int32, shape (); gradients in the sum, below ``every``
    total: Updates  # their sum; None for leaves that are not trained
    inner: OptState
    step: jax.Array  # int32, shape (); updates so far


@explains_keywords()
def accumulate(inner: TransformLike, every: int | Schedule) -> Transform:
    r"""Give a transform the mean of ``every`` gradients at a time.

    $$u_t = \mathrm{inner}\Big(\frac{1}{k} \sum_{i = t - k + 1}^{t} g_i\Big)
      \quad\text{if}\quad k \mid t, \qquad\text{else}\quad u_t = 0$$

    In between, the parameters and the state of ``inner`` do not change, so k
    micro-batches of one size equal one batch of k times that size: a clip in ``inner``
    clips the mean, and schedules and averages in it count updates. The state holds the
    sum of gradients, in at least float32; ``every=1`` is ``inner`` itself, without a
    sum. A sum that is incomplete when training ends is dropped.

    *A batch size by schedule.* With a schedule, $k$ is its value at the number of
    updates made, rounded to an int, at least 1, so that the size of the batch behind an
    update grows or shrinks in multiples of the data's. Shapes do not change and nothing
    is compiled again; the order of the data, the steps of an epoch and a resume are
    those of the data's batch size, since ``state.step`` counts batches. The state holds
    the number of updates too.

    It reports ``mini_step``, the index of this gradient among the k, from 0, what
    ``inner`` reports for the mean so far, and with a schedule ``every``, the $k$ in
    force. Every gradient counts the same: a mean over batches of different weight needs
    ``make_step(micro_batches=)`` and a `fngrad.losses.weighted_sum`.

    Args:
        inner: the transform of the means, usually a whole optimizer.
        every: $k$ >= 1, an int, or a schedule of the updates of ``inner``.

    Raises:
        ValueError: if ``every`` is neither an int >= 1 nor a schedule.

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

        One batch for each of the first 1000 updates, then four:

        >>> every = fg.schedules.piecewise_constant(1, {1000: 4})
        >>> optimizer = fg.accumulate(fg.adam(1e-3), every)

    References:
        Smith et al., Don't decay the learning rate, increase the batch size, 2018,
        https://arxiv.org/abs/1711.00489. optax's ``MultiSteps`` calls the schedule
        ``every_k_schedule``; it truncates where this rounds.
    """
    if not callable(every):
        every = numerics.check_count("every", every, low=1)
    if every == 1:
        return chain(inner)
    within = unwrap(inner)
    # Built once: in eager mode, new functions would compile at every call.
    branches: dict[UpdateFn, tuple[Callable[..., Any], ...]] = {
        update_fn: _branches(within, update_fn, every)
        for update_fn in (update_only, update_and_report)
    }

    def init(params: Params) -> Any:
        trained = _trainable_part(within, params, params)
        total = tree.wide_zeros_like(trained)
        fields = numerics.first_step(), total, within.init(params)
        if callable(every):
            return ScheduledAccumulateState(*fields, numerics.first_step())
        return AccumulateState(*fields)

    def advance(
        update_fn: UpdateFn, updates: Updates, state: Any, params: Params
    ) -> tuple[Updates, OptState, Metrics]:
        total = tree.add(state.total, _trainable_part(within, updates, params))
        operands = total, updates, state, params
        count = _count(every, state)
        is_last = state.mini_step == count - 1
        made, new, metrics = jax.lax.cond(is_last, *branches[update_fn], *operands)
        own: Metrics = {"mini_step": state.mini_step}
        if callable(every):
            own["every"] = jnp.asarray(count)
        return made, new, own | metrics

    return chain(wrapper(init, advance, "accumulate", within.trainable))


def _branches(
    within: Transform, update_fn: UpdateFn, every: int | Schedule
) -> tuple[Callable[..., Any], ...]:
    """Return what happens with the last gradient of a mean, and with the others."""

    def apply(
        total: Any, updates: Any, state: Any, params: Any
    ) -> tuple[Updates, OptState, Metrics]:
        whole = _mean(total, _count(every, state), updates)
        made, new, metrics = update_fn(within, whole, state.inner, params)
        return made, _emptied(state, total, new), metrics

    def wait(
        total: Any, updates: Any, state: Any, params: Any
    ) -> tuple[Updates, OptState, Metrics]:
        waiting = state._replace(mini_step=state.mini_step + 1, total=total)
        if update_fn is update_only:
            return tree.zeros_like(updates), waiting, {}
        so_far = _mean(total, state.mini_step + 1, updates)
        _, _, metrics = update_fn(within, so_far, state.inner, params)
        return tree.zeros_like(updates), waiting, metrics

    return apply, wait


def _trainable_part(within: Transform, a: Any, params: Params) -> Any:
    return tree.keep(trainable_leaves(within, params), a)


def _count(every: int | Schedule, state: Any) -> Any:
    """Return the number of gradients in the mean that a state is gathering."""
    if not callable(every):
        return every
    rounded = jnp.round(numerics.hyper(every, state.step))
    return jnp.maximum(rounded, 1).astype(jnp.int32)


def _emptied(state: Any, total: Updates, inner: OptState) -> OptState:
    """Return the state after an update, without gradients."""
    empty = tree.zeros_like(total)
    state = state._replace(mini_step=numerics.first_step(), total=empty, inner=inner)
    if isinstance(state, ScheduledAccumulateState):
        return state._replace(step=numerics.next_step(state.step))
    return state


def _mean(total: Updates, count: jax.Array | int, updates: Updates) -> Updates:
    """Return total / count; zeros for leaves that are not trained."""
    mean = jax.tree.map(lambda x: x / jnp.asarray(count).astype(x.dtype), total)
    return tree.merge(mean, tree.zeros_like(updates))
