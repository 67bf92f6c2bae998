"""The loss scale of float16: kept in the optimizer's state, adapted to overflows."""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    unwrap,
    wrapper,
)
from fngrad.transforms.nonfinite_updates import SkipNonfiniteState, attempts
from fngrad.types import Metrics, OptState, Params, Path, Updates

MAX_SCALE = 2.0**24
MIN_SCALE = 2.0**-126  # of which the reciprocal is finite in float32


class LossScalingState(NamedTuple):
    """State of `loss_scaling`."""

    scale: jax.Array  # float32, shape (), a power of two; of the next step's loss
    good_steps: jax.Array  # int32, shape (); finite ones in a row at this scale
    consecutive: jax.Array  # int32, shape (); steps skipped since the last one taken
    total: jax.Array  # int32, shape (); steps skipped so far
    inner: OptState


def loss_scaling(
    inner: TransformLike,
    init_scale: float = 2.0**15,
    growth_interval: int = 2000,
    min_scale: float = 1.0,
) -> Transform:
    r"""Keep a scale of the loss with which gradients fit in float16.

    In float16 numbers below $3 \cdot 10^{-8}$ are zero, as most of a gradient may be.
    `fngrad.make_step` and the steps of `fngrad.steps` that take a gradient (those of
    least squares take residuals) differentiate $S_t L$ and divide by the scale $S_t$,
    in float32,

    $$g_t = \frac{1}{S_t} \nabla_\theta\, (S_t L),$$

    which changes no digit, since $S_t$ is a power of two. If $g_t$ has an infinity or
    a NaN, the step is skipped and the scale halved; after $k$ finite steps in a row it
    is doubled:

    $$S_{t+1} = \begin{cases}
        \max(S_t / 2, S_{\min}) & g_t \text{ not finite} \cr
        \min(2 S_t, 2^{24}) & \text{the } k\text{-th finite step in a row} \cr
        S_t & \text{else.} \end{cases}$$

    A skipped step has the updates zero, keeps every bit of the state of ``inner``, and
    counts as finite for `fngrad.fit`, as with `fngrad.skip_nonfinite`. At the smallest
    scale the gradient does not overflow because of the scale: ``gave_up`` is reported,
    and the step counts as not finite. Updates that ``inner`` makes of a finite gradient
    are not checked.

    It wraps a whole optimizer, ``loss_scaling(accumulate(adam(1e-3), 4))``, since a
    gradient that is not finite must not reach any state. The transform itself does not
    divide: in a loop of your own, multiply the loss by
    `fngrad.transforms.dynamic_loss_scale.scale_in_force` of the optimizer's state and
    divide the gradient by it, in float32; otherwise steps whose gradient is not finite
    are skipped, and the scale has no effect. bfloat16 has the range of float32 and
    needs no scale.

    It reports ``scale`` ($S_t$), ``consecutive`` and ``total``, the skips including
    this step's, ``gave_up``, 0 or 1, and the metrics of ``inner``.

    Args:
        inner: a whole optimizer.
        init_scale: $S_0$, a power of two, at most $2^{24}$.
        growth_interval: $k$ >= 1, an int.
        min_scale: $S_{\min}$, a power of two, at least $2^{-126}$, at most $S_0$.

    Raises:
        TypeError: if a scale is not a Python number.
        ValueError: if a scale is not a power of two or out of range, or
            ``growth_interval`` is not an int >= 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(w, batch):  # its gradient is zero in float16
        ...     return jnp.sum(w * batch).astype(jnp.float32) * 1e-8
        >>> optimizer = fg.loss_scaling(fg.sgd(0.1))
        >>> step = fg.make_step(loss_fn, optimizer, precision="float16")
        >>> state = fg.init_state(jnp.zeros(()), optimizer, key=0)
        >>> state, metrics = step(state, jnp.array([2.0]))
        >>> print(f"{metrics['grad_norm']:.0e}", metrics["loss_scaling/scale"])
        2e-08 32768.0

    References:
        Micikevicius et al., Mixed precision training, 2018, section 3.2,
        https://arxiv.org/abs/1710.03740. The defaults are those of torch's
        ``GradScaler``. Differs from it in: the first scale is $2^{15}$, not $2^{16}$,
        which is infinite in float16; there is a smallest and a largest scale.
    """
    _check_scale("init_scale", init_scale, MAX_SCALE)
    _check_scale("min_scale", min_scale, init_scale)
    growth_interval = numerics.check_count("growth_interval", growth_interval, 1)
    within = unwrap(inner)
    attempt = attempts(within)

    def init(params: Params) -> LossScalingState:
        return LossScalingState(
            scale=jax.device_put(np.float32(init_scale)),
            good_steps=numerics.first_step(),
            consecutive=numerics.first_step(),
            total=numerics.first_step(),
            inner=within.init(params),
        )

    def advance(
        update_fn: UpdateFn, updates: Updates, state: LossScalingState, params: Params
    ) -> tuple[Updates, LossScalingState, Metrics]:
        tried = attempt(update_fn, updates, state.inner, params)
        taken = _taken(state, growth_interval)._replace(inner=tried.state)
        new_state = tree.where(tried.is_finite, taken, _skipped(state, min_scale))
        made = tree.where(tried.is_finite, tried.updates, tree.zeros_like(updates))
        has_given_up = ~tried.is_finite & (state.scale <= min_scale)
        reports: Metrics = {
            "scale": state.scale,
            "consecutive": new_state.consecutive,
            "total": new_state.total,
            "gave_up": has_given_up.astype(jnp.int32),
        }
        return made, new_state, reports | tried.metrics

    return chain(wrapper(init, advance, "loss_scaling", within.trainable))


def scale_in_force(opt_state: Any) -> jax.Array | None:
    """Return the scale of the next loss; None if the optimizer has no `loss_scaling`.

    Args:
        opt_state: an optimizer's state, or any tree that contains one.

    Raises:
        ValueError: if there are two, since a loss has one scale, or it is inside
            `skip_nonfinite`, which would restore the scale that overflowed.
    """
    found = _found(opt_state)
    if len(found) > 1:
        raise ValueError(
            "need one loss_scaling, around the whole optimizer, got "
            f"{len(found)}: {[path for path, _ in found]}"
        )
    skipping = queries.find(opt_state, SkipNonfiniteState)
    if any(_found(state.inner) for state in skipping):
        raise ValueError(
            "need loss_scaling around skip_nonfinite, got it inside, where a skipped "
            "step would not halve the scale: loss_scaling(skip_nonfinite(optimizer))"
        )
    return found[0][1].scale if found else None


def _found(opt_state: Any) -> list[tuple[Path, LossScalingState]]:
    """Return all states of `loss_scaling` with their paths, also one inside another."""
    outermost = queries.find_with_paths(opt_state, LossScalingState)
    inside = [
        (f"{path}/inner/{below}", state)
        for path, outer in outermost
        for below, state in _found(outer.inner)
    ]
    return outermost + inside


def _taken(state: LossScalingState, growth_interval: int) -> LossScalingState:
    """Return the state after a finite step, with the old state of ``inner``."""
    good_steps = state.good_steps + 1
    is_due = good_steps >= growth_interval
    grown = jnp.minimum(state.scale * 2, MAX_SCALE)
    return state._replace(
        scale=jnp.where(is_due, grown, state.scale),
        good_steps=jnp.where(is_due, 0, good_steps),
        consecutive=jnp.zeros_like(state.consecutive),
    )


def _skipped(state: LossScalingState, min_scale: float) -> LossScalingState:
    return state._replace(
        scale=jnp.maximum(state.scale / 2, min_scale),
        good_steps=jnp.zeros_like(state.good_steps),
        consecutive=numerics.next_step(state.consecutive),
        total=numerics.next_step(state.total),
    )


def _check_scale(name: str, scale: Any, most: float) -> None:
    if not isinstance(scale, numbers.Real) or isinstance(scale, bool):
        raise TypeError(f"need a number as {name}, got {scale!r}")
    value = float(scale)
    numerics.check_positive(name, value)
    if not MIN_SCALE <= value <= most or math.frexp(value)[0] != 0.5:
        raise ValueError(
            f"need a power of two, at most {most:g}, as {name}, so that scaling rounds "
            f"no digit, got {name}={scale!r}"
        )
