"""Steps that are not taken."""

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
    unwrap,
    update_and_report,
    wrapping,
)
from fngrad.types import Metrics, OptState, Params, Updates


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`."""

    consecutive: jax.Array  # int32, shape (); steps skipped since the last one taken
    total: jax.Array  # int32, shape (); steps skipped so far
    inner: OptState


def skip_nonfinite(inner: TransformLike, max_consecutive: int = 10) -> Transform:
    """Skip a step that would put a NaN or an infinity into parameters or state.

    A step is skipped where a gradient, an update that ``inner`` makes of it, or an
    entry of its state that was finite before is not finite. Then updates are zero and
    the state of ``inner`` keeps every bit. More than ``max_consecutive`` skips in a
    row are no longer an accident: steps are skipped still, so nothing is ever written
    that is not finite, but ``gave_up`` is reported, and `fngrad.make_step` reports
    the step as not finite, so that `fngrad.fit` stops; a skip within the limit counts
    as finite there. A model state is the loss function's, and is not guarded.

    It reports ``consecutive`` and ``total``, the skips including this step's,
    ``gave_up``, 0 or 1, and what ``inner`` reports.

    Args:
        inner: usually a whole optimizer.
        max_consecutive: how many skips in a row are let pass, an int >= 0.

    Raises:
        ValueError: ``max_consecutive`` is no int >= 0.

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

    def init(params: Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(
            numerics.first_step(), numerics.first_step(), within.init(params)
        )

    def of_what_came(_: Metrics, *given: Any) -> Metrics:
        """Return the reports of a gradient that is skipped, as it came."""
        return jax.lax.stop_gradient(update_and_report(within, *given)[2])

    def advance(
        run: Run, updates: Updates, state: SkipNonfiniteState, params: Params
    ) -> tuple[Updates, SkipNonfiniteState, Metrics]:
        arrives = _all(jax.tree.map(_is_finite, updates))
        zeros = tree.zeros_like(updates)
        # Not finite times zero is NaN in derivatives through the branch not taken.
        safe = tree.where(arrives, updates, zeros)
        made, new, told = run(within, safe, state.inner, params)
        departs = _all(jax.tree.map(_is_finite, made))
        is_sound = arrives & departs & tree.stays_finite(state.inner, new)
        taken = SkipNonfiniteState(jnp.zeros_like(state.consecutive), state.total, new)
        new_state = tree.where(is_sound, taken, _skipped(state))

        if told:
            given = told, updates, state.inner, params
            told = jax.lax.cond(arrives, _as_told, of_what_came, *given)
        reports: Metrics = {
            "consecutive": new_state.consecutive,
            "total": new_state.total,
            "gave_up": (new_state.consecutive > max_consecutive).astype(jnp.int32),
        }
        return tree.where(is_sound, made, zeros), new_state, reports | told

    return chain(wrapping(init, advance, "skip_nonfinite", within.trainable))


def _as_told(told: Metrics, *_: Any) -> Metrics:
    return told


def _skipped(state: SkipNonfiniteState) -> SkipNonfiniteState:
    return SkipNonfiniteState(
        numerics.next_step(state.consecutive),
        numerics.next_step(state.total),
        state.inner,
    )


def _is_finite(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.ones((), bool)
    return jnp.all(jnp.isfinite(x))


def _all(answers: Any) -> jax.Array:
    return jax.tree.reduce(jnp.logical_and, answers, jnp.ones((), bool))
