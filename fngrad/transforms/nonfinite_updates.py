"""Updates that are not finite: skipped."""

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
    unwrap,
    update_and_report,
    wrapper,
)
from fngrad.types import Metrics, OptState, Params, Updates


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`."""

    consecutive: jax.Array  # int32, shape (); steps skipped since the last one taken
    total: jax.Array  # int32, shape (); steps skipped so far
    inner: OptState


def skip_nonfinite(inner: TransformLike, max_consecutive: int = 10) -> Transform:
    """Skip a step that would put a NaN or an infinity into parameters or state.

    A step is skipped if a gradient, an update of ``inner``, or an entry of its state
    that was finite before is not finite. Then updates are zero and the state of
    ``inner`` keeps every bit. After more than ``max_consecutive`` skips in a row steps
    are still skipped, so that no value is written that is not finite, but ``gave_up``
    is reported, and `fngrad.make_step` reports the step as not finite, so that
    `fngrad.fit` stops. A skip within the limit counts as finite there. The model state
    belongs to the loss function, and is not checked.

    It reports ``consecutive`` and ``total``, the skips including this step's,
    ``gave_up``, 0 or 1, and the metrics of ``inner``. ``consecutive`` above 0, in the
    metrics of a step ``skip_nonfinite/consecutive``, tells that this step was skipped;
    ``is_finite`` does not, and loss and ``grad_norm`` are NaN or infinite as they were.

    Args:
        inner: usually a whole optimizer.
        max_consecutive: how many skips in a row are allowed, an int >= 0.

    Raises:
        ValueError: if ``max_consecutive`` is not an int >= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer, params = fg.skip_nonfinite(fg.sgd(1.0)), jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(jnp.array([1.0, jnp.nan]), state, params)
        >>> print(updates, state["skip_nonfinite"].total)
        [0. 0.] 1
    """
    max_consecutive = numerics.check_count("max_consecutive", max_consecutive)
    within = unwrap(inner)
    attempt = attempts(within)

    def init(params: Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(
            numerics.first_step(), numerics.first_step(), within.init(params)
        )

    def advance(
        update_fn: UpdateFn, updates: Updates, state: SkipNonfiniteState, params: Params
    ) -> tuple[Updates, SkipNonfiniteState, Metrics]:
        tried = attempt(update_fn, updates, state.inner, params)
        is_sound = tried.is_finite & _all(jax.tree.map(_is_finite, tried.updates))
        is_sound &= tree.stays_finite(state.inner, tried.state)
        taken = SkipNonfiniteState(
            jnp.zeros_like(state.consecutive), state.total, tried.state
        )
        new_state = tree.where(is_sound, taken, _skipped(state))
        reports: Metrics = {
            "consecutive": new_state.consecutive,
            "total": new_state.total,
            "gave_up": (new_state.consecutive > max_consecutive).astype(jnp.int32),
        }
        made = tree.where(is_sound, tried.updates, tree.zeros_like(updates))
        return made, new_state, reports | tried.metrics

    return chain(wrapper(init, advance, "skip_nonfinite", within.trainable))


class Attempt(NamedTuple):
    """An update by a gradient that may not be finite; then it is one by zeros."""

    updates: Updates
    state: OptState
    metrics: Metrics  # also then those of the gradient itself
    is_finite: jax.Array  # bool, shape (); whether the gradient is


def attempts(part: Transform) -> Callable[..., Attempt]:
    """Return ``attempt(update_fn, updates, state, params)`` of a part.

    Called once per part: in eager mode, new functions would compile at every call.
    """

    def metrics_of_skipped(_: Metrics, *operands: Any) -> Metrics:
        return jax.lax.stop_gradient(update_and_report(part, *operands)[2])

    def attempt(
        update_fn: UpdateFn, updates: Updates, state: OptState, params: Params
    ) -> Attempt:
        is_finite = _all(jax.tree.map(_is_finite, updates))
        # In derivatives through the branch not taken, inf * 0 would be NaN.
        safe = tree.where(is_finite, updates, tree.zeros_like(updates))
        made, new, metrics = update_fn(part, safe, state, params)
        if metrics:
            operands = metrics, updates, state, params
            metrics = jax.lax.cond(is_finite, _first, metrics_of_skipped, *operands)
        return Attempt(made, new, metrics, is_finite)

    return attempt


def _first(metrics: Metrics, *_: Any) -> Metrics:
    return metrics


def _skipped(state: SkipNonfiniteState) -> SkipNonfiniteState:
    return SkipNonfiniteState(
        numerics.next_step(state.consecutive),
        numerics.next_step(state.total),
        state.inner,
    )


def _is_finite(x: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(x)) if tree.is_float(x) else jnp.ones((), bool)


def _all(answers: Any) -> jax.Array:
    return jax.tree.reduce(jnp.logical_and, answers, jnp.ones((), bool))
