"""Many small batches as one large one."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import (
    Run,
    Transform,
    TransformLike,
    chain,
    learned_leaves,
    unwrap,
    update_and_report,
    update_only,
    wrapping,
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

    In between, the parameters and the state of ``inner`` stay as they are, so k
    micro-batches of one size are one batch of k times that size: a clip in ``inner``
    clips the mean, and schedules and averages in it count updates. It keeps one tree
    of gradients more, in at least float32, and none with ``every=1``, which is
    ``inner`` itself. A sum that is not complete when training ends is dropped.

    It reports ``mini_step``, which of the k gradients this is, from 0, and what
    ``inner`` reports of the mean so far.

    Args:
        inner: the transform of the means, usually a whole optimizer.
        every: $k$ >= 1, an int.

    Raises:
        ValueError: ``every`` is no int >= 1.

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

    def learned(a: Any, params: Params) -> Any:
        return tree.keep(learned_leaves(within, params), a)

    def init(params: Params) -> AccumulateState:
        total = tree.wide_zeros_like(learned(params, params))
        return AccumulateState(numerics.first_step(), total, within.init(params))

    def apply(
        run: Run, total: Updates, updates: Updates, state: AccumulateState, params: Any
    ) -> tuple[Updates, AccumulateState, Metrics]:
        whole = _mean(total, every, updates)
        made, new, told = run(within, whole, state.inner, params)
        empty = tree.zeros_like(total)
        return made, AccumulateState(numerics.first_step(), empty, new), told

    def wait(
        run: Run, total: Updates, updates: Updates, state: AccumulateState, params: Any
    ) -> tuple[Updates, AccumulateState, Metrics]:
        waiting = AccumulateState(state.mini_step + 1, total, state.inner)
        if run is update_only:
            return tree.zeros_like(updates), waiting, {}
        so_far = _mean(total, state.mini_step + 1, updates)
        _, _, told = run(within, so_far, state.inner, params)
        return tree.zeros_like(updates), waiting, told

    # Made once: called eagerly, new functions would compile at every call.
    branches: dict[Run, list[Callable[..., Any]]] = {
        run: [functools.partial(branch, run) for branch in (apply, wait)]
        for run in (update_only, update_and_report)
    }

    def advance(
        run: Run, updates: Updates, state: AccumulateState, params: Params
    ) -> tuple[Updates, AccumulateState, Metrics]:
        total = tree.add(state.total, learned(updates, params))
        given = total, updates, state, params
        is_last = state.mini_step == every - 1
        made, new, told = jax.lax.cond(is_last, *branches[run], *given)
        return made, new, {"mini_step": state.mini_step, **told}

    return chain(wrapping(init, advance, "accumulate", within.trainable))


def _mean(total: Updates, count: jax.Array | int, updates: Updates) -> Updates:
    """Divide by a count; zeros where nothing is kept."""
    mean = jax.tree.map(lambda x: x / jnp.asarray(count).astype(x.dtype), total)
    return tree.merge(mean, tree.zeros_like(updates))
