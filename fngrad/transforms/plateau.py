"""A scale that falls when a watched value stops improving.

The value comes from outside: `observe` puts it into the state, and the next update
reads it there. So the rule is a transform like any other, and a new scale compiles
nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, telling
from fngrad.types import Hyper, Metrics, Mode, Params, Scalar, Updates


class ReduceOnPlateauState(NamedTuple):
    """State of `reduce_on_plateau`."""

    step: jax.Array  # int32, shape ()
    scale: jax.Array  # float, shape (); what updates are multiplied by
    best: jax.Array  # float, shape (); the best value so far, the worst float at first
    bad: jax.Array  # int32, shape (); values in a row that did not improve
    cooling: jax.Array  # int32, shape (); values still to ignore
    total: jax.Array  # float, shape (); sum of the values not read yet
    observations: jax.Array  # int32, shape (); how many those are
    mode = None  # of the class: which way is better, where that was asked for


class FallingPlateauState(ReduceOnPlateauState):
    """State of ``reduce_on_plateau(mode="min")``."""

    mode = "min"


class RisingPlateauState(ReduceOnPlateauState):
    """State of ``reduce_on_plateau(mode="max")``."""

    mode = "max"


_STATES = {
    None: ReduceOnPlateauState,
    "min": FallingPlateauState,
    "max": RisingPlateauState,
}


def reduce_on_plateau(
    factor: Hyper = 0.1,
    patience: int = 10,
    rtol: Hyper = 1e-4,
    atol: Hyper = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: Hyper = 0.0,
    mode: Mode | None = None,
) -> Transform:
    r"""Multiply updates by a scale that falls when an observed value stops improving.

    A value $v$ improves on the best so far, $b$, if

    $$v < b - (\mathrm{rtol}\,|b| + \mathrm{atol}),$$

    for values of either sign; with ``mode="max"``, if $-v$ improves on $-b$. After
    ``patience`` values in a row that do not,
    $s \leftarrow \max(s \cdot \mathrm{factor}, s_{\min})$, and the next ``cooldown``
    values count as no failure. NaN never improves. It reports ``scale``.

    Args:
        factor: in (0, 1).
        patience: >= 1, in values; PyTorch's ``patience`` is this minus one.
        rtol: >= 0, relative to the best value.
        atol: >= 0, in units of the value.
        cooldown: >= 0, in values.
        accumulation_size: >= 1; how many observations are averaged into one value.
        min_scale: $s_{\min}$ in [0, 1].
        mode: ``"min"`` for a value that should fall, ``"max"`` for one that should
            rise. ``None`` means that it should fall as it is observed;
            `fngrad.steps.plateau` then observes a metric that rises negated.

    Raises:
        ValueError: a number out of range, another mode.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.sgd(1.0), fg.reduce_on_plateau(0.5, patience=1))
        >>> params = jnp.array(1.0)
        >>> state = optimizer.init(params)
        >>> for value in (-1.0, -1.0):
        ...     state = fg.steps.observe(state, value)
        ...     updates, state = optimizer.update(params, state, params)
        >>> print(updates)
        -0.5

    References:
        PyTorch's ``ReduceLROnPlateau``, and optax's ``reduce_on_plateau``, whose
        arguments these are. Differs from them in: the threshold is relative to $|b|$;
        theirs, $(1 - \mathrm{rtol})\,b$, lies above a negative $b$, so that a value
        which stands still improves, and the scale never falls. An update reads
        what was observed before it, as in PyTorch; optax reads the value of the same
        step.
    """
    numerics.check_mode(mode)
    _check(factor, patience, rtol, atol, cooldown, accumulation_size, min_scale)
    kind, sign = _STATES[mode], -1 if mode == "max" else 1

    def init(params: Params) -> ReduceOnPlateauState:
        zero = jnp.zeros((), jnp.result_type(float))
        count, worst = numerics.first_step, sign * _highest(zero)
        return kind(count(), zero + 1, worst, count(), count(), zero + 0, count())

    def digest(state: ReduceOnPlateauState) -> ReduceOnPlateauState:
        value = state.total / jnp.maximum(state.observations, 1).astype(float)
        best = sign * state.best
        margin = _margin(best, *_asked((rtol, atol), state.step))
        is_better = sign * value < best - margin
        is_cooling = state.cooling > 0
        bad = jnp.where(is_better | is_cooling, 0, numerics.next_step(state.bad))
        is_reduced = bad >= patience
        decay, least = _asked((factor, min_scale), state.step)
        lower = jnp.maximum(state.scale * decay, least)
        waited = jnp.maximum(state.cooling - 1, 0)
        return state._replace(
            scale=jnp.where(is_reduced, lower, state.scale),
            best=jnp.where(is_better, value, state.best),
            bad=jnp.where(is_reduced, 0, bad),
            cooling=jnp.where(is_reduced, jnp.int32(cooldown), waited),
            total=jnp.zeros_like(state.total),
            observations=numerics.first_step(),
        )

    def advance(state: ReduceOnPlateauState) -> ReduceOnPlateauState:
        is_due = state.observations >= accumulation_size
        return tree.where(is_due, digest(state), state)

    def report(
        updates: Updates, state: ReduceOnPlateauState, params: Params
    ) -> tuple[Updates, ReduceOnPlateauState, Metrics]:
        state = advance(state)
        new_state = state._replace(step=numerics.next_step(state.step))
        return tree.scale(state.scale, updates), new_state, {"scale": state.scale}

    return chain(telling(init, report, "reduce_on_plateau"))


def add_observation(state: ReduceOnPlateauState, value: Scalar) -> ReduceOnPlateauState:
    """Return the state with one more value to be read by the next update.

    Raises:
        ValueError: the value is not a scalar.
    """
    if jnp.shape(value) != ():
        raise ValueError(f"need a scalar to observe, got shape {jnp.shape(value)}")
    return state._replace(
        total=state.total + jnp.asarray(value).astype(state.total.dtype),
        observations=numerics.next_step(state.observations),
    )


def _asked(values: tuple[Hyper, ...], step: jax.Array) -> list[jax.Array]:
    return [numerics.hyper(value, step) for value in values]


def _highest(like: jax.Array) -> jax.Array:
    return jnp.full_like(like, jnp.finfo(like.dtype).max)


def _margin(best: jax.Array, rtol: jax.Array, atol: jax.Array) -> jax.Array:
    """Return by how much a value must lie below the best; the first always does."""
    size = jnp.where(best < _highest(best), jnp.abs(best), 0)
    return rtol * size + atol


def _check(
    factor: Hyper,
    patience: int,
    rtol: Hyper,
    atol: Hyper,
    cooldown: int,
    accumulation_size: int,
    min_scale: Hyper,
) -> None:
    numerics.check_positive("factor", factor)
    numerics.check_number("factor", factor, high=1.0)
    if not callable(factor) and not hasattr(factor, "dtype") and factor == 1:
        raise ValueError(f"need factor < 1, got {factor=}")
    numerics.check_number("rtol", rtol, low=0.0)
    numerics.check_number("atol", atol, low=0.0)
    numerics.check_number("min_scale", min_scale, 0.0, 1.0)
    lowest: dict[str, tuple[Any, int]] = {
        "patience": (patience, 1),
        "cooldown": (cooldown, 0),
        "accumulation_size": (accumulation_size, 1),
    }
    for name, (value, low) in lowest.items():
        if value < low:
            raise ValueError(f"need {name} >= {low}, got {name}={value}")
