"""Steps that are not taken."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, TransformLike, chain, unwrap
from fngrad.types import Metrics, OptState, Params, Updates


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`."""

    consecutive: jax.Array  # int32, shape (); steps skipped since the last one taken
    total: jax.Array  # int32, shape (); steps skipped so far
    inner: OptState


class _Outcome(NamedTuple):
    is_sound: jax.Array  # bool, shape ()
    updates: Updates
    state: SkipNonfiniteState


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
    is_int = isinstance(max_consecutive, int) and not isinstance(max_consecutive, bool)
    if not is_int or max_consecutive < 0:
        raise ValueError(f"need an int max_consecutive >= 0, got {max_consecutive=}")
    within = unwrap(inner)

    def attempt(
        updates: Updates, state: SkipNonfiniteState, params: Params
    ) -> _Outcome:
        arrives = _all(jax.tree.map(_is_finite, updates))
        zeros = tree.zeros_like(updates)
        # Zeros in place of what is not finite: it would reach derivatives through
        # the branch that is not taken.
        made, new = within.update(
            tree.where(arrives, updates, zeros), state.inner, params
        )
        leaves_so = _all(jax.tree.map(_is_finite, made))
        stays = _all(jax.tree.map(_stays_finite, state.inner, new))
        sound = arrives & leaves_so & stays
        skipped = SkipNonfiniteState(
            numerics.next_step(state.consecutive),
            numerics.next_step(state.total),
            state.inner,
        )
        taken = SkipNonfiniteState(jnp.zeros_like(state.consecutive), state.total, new)
        return _Outcome(
            sound, tree.where(sound, made, zeros), tree.where(sound, taken, skipped)
        )

    def init(params: Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(
            numerics.first_step(), numerics.first_step(), within.init(params)
        )

    def update(
        updates: Updates, state: SkipNonfiniteState, params: Params
    ) -> tuple[Updates, SkipNonfiniteState]:
        outcome = attempt(updates, state, params)
        return outcome.updates, outcome.state

    def report(updates: Updates, state: SkipNonfiniteState, params: Params) -> Metrics:
        new = attempt(updates, state, params).state
        reports: Metrics = {
            "consecutive": new.consecutive,
            "total": new.total,
            "gave_up": (new.consecutive > max_consecutive).astype(jnp.int32),
        }
        if within.report:
            reports |= within.report(updates, state.inner, params)
        return reports

    return chain(
        Transform(
            init,
            update,
            name="skip_nonfinite",
            report=report,
            trainable=within.trainable,
        )
    )


def _is_finite(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.ones((), bool)
    return jnp.all(jnp.isfinite(x))


def _stays_finite(old: jax.Array, new: jax.Array) -> jax.Array:
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return jnp.ones((), bool)
    return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))


def _all(answers: Any) -> jax.Array:
    return jax.tree.reduce(jnp.logical_and, answers, jnp.ones((), bool))
