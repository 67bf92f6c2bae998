"""A scale that falls when an observed value stops improving.

The value is an input: `fngrad.steps.observe` puts it into the state, where the next
update reads it. So the rule is an ordinary transform, and a new scale compiles nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.types import Hyper, Metrics, Mode, Params, Scalar, Updates


class ReduceOnPlateauState(NamedTuple):
    """State of `reduce_on_plateau`."""

    step: jax.Array  # int32, shape ()
    scale: jax.Array  # float, shape (); the factor of updates
    best: jax.Array  # float, shape (); the best value so far, the worst float at first
    bad: jax.Array  # int32, shape (); values in a row without an improvement
    cooling: jax.Array  # int32, shape (); values still to ignore
    total: jax.Array  # float, shape (); sum of the observations not yet read
    observations: jax.Array  # int32, shape (); the number of terms in that sum
    mode = None  # a class attribute: the direction, "min" or "max", if it was given


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
    ``patience`` values in a row without an improvement,
    $s \leftarrow \max(s \cdot \mathrm{factor}, s_{\min})$, and the next ``cooldown``
    values are not counted. NaN never improves. It reports ``scale``.

    Args:
        factor: in (0, 1).
        patience: >= 1, in values; one more than PyTorch's ``patience``.
        rtol: >= 0, relative to the best value.
        atol: >= 0, in units of the value.
        cooldown: >= 0, in values.
        accumulation_size: >= 1; how many observations are averaged to one value.
        min_scale: $s_{\min}$ in [0, 1].
        mode: ``"min"`` for a value that should fall, ``"max"`` for one that should
            rise. ``None`` means that the observed value should fall;
            `fngrad.steps.plateau` then negates a metric that should rise.

    Raises:
        ValueError: if a number is out of range, or the mode is unknown.

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
        theirs, $(1 - \mathrm{rtol})\,b$, is above a negative $b$, so that a constant
        value counts as an improvement, and the scale never falls. An update reads
        the values observed before it, as in PyTorch; optax reads the value of the same
        step.
    """
    numerics.check_mode(mode)
    _check_numbers(factor=factor, rtol=rtol, atol=atol, min_scale=min_scale)
    _check_at_least(1, patience=patience, accumulation_size=accumulation_size)
    _check_at_least(0, cooldown=cooldown)
    state_class, sign = _STATES[mode], -1 if mode == "max" else 1

    def init(params: Params) -> ReduceOnPlateauState:
        return _first_state(state_class, sign)

    def read(state: ReduceOnPlateauState) -> ReduceOnPlateauState:
        value = state.total / jnp.maximum(state.observations, 1).astype(float)
        best = sign * state.best
        at_step = functools.partial(numerics.hyper, step=state.step)
        margin = _margin(best, rtol=at_step(rtol), atol=at_step(atol))
        is_better = sign * value < best - margin
        is_cooling = state.cooling > 0
        bad = jnp.where(is_better | is_cooling, 0, numerics.next_step(state.bad))
        is_reduced = bad >= patience
        lower = jnp.maximum(state.scale * at_step(factor), at_step(min_scale))
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
        return tree.where(is_due, read(state), state)

    def report(
        updates: Updates, state: ReduceOnPlateauState, params: Params
    ) -> tuple[Updates, ReduceOnPlateauState, Metrics]:
        state = advance(state)
        new_state = state._replace(step=numerics.next_step(state.step))
        return tree.scale(state.scale, updates), new_state, {"scale": state.scale}

    return chain(from_report(init, report, "reduce_on_plateau"))


def add_observation(state: ReduceOnPlateauState, value: Scalar) -> ReduceOnPlateauState:
    """Return the state with one more observation, which the next update reads.

    Raises:
        ValueError: if the value is not a scalar.
    """
    if jnp.shape(value) != ():
        raise ValueError(f"need a scalar to observe, got shape {jnp.shape(value)}")
    return state._replace(
        total=state.total + jnp.asarray(value).astype(state.total.dtype),
        observations=numerics.next_step(state.observations),
    )


def _first_state(
    state_class: type[ReduceOnPlateauState], sign: int
) -> ReduceOnPlateauState:
    zero = jnp.zeros((), jnp.result_type(float))
    return state_class(
        step=numerics.first_step(),
        scale=zero + 1,
        best=sign * _highest(zero),
        bad=numerics.first_step(),
        cooling=numerics.first_step(),
        total=zero + 0,
        observations=numerics.first_step(),
    )


def _highest(like: jax.Array) -> jax.Array:
    return jnp.full_like(like, jnp.finfo(like.dtype).max)


def _margin(best: jax.Array, *, rtol: jax.Array, atol: jax.Array) -> jax.Array:
    """Return by how much a value must be below the best; 0 for the first value."""
    size = jnp.where(best < _highest(best), jnp.abs(best), 0)
    return rtol * size + atol


def _check_numbers(
    *, factor: Hyper, rtol: Hyper, atol: Hyper, min_scale: Hyper
) -> None:
    numerics.check_positive("factor", factor)
    numerics.check_number("factor", factor, high=1.0)
    if not callable(factor) and not hasattr(factor, "dtype") and factor == 1:
        raise ValueError(f"need factor < 1, got {factor=}")
    numerics.check_number("rtol", rtol, low=0.0)
    numerics.check_number("atol", atol, low=0.0)
    numerics.check_number("min_scale", min_scale, 0.0, 1.0)


def _check_at_least(low: int, **values: int) -> None:
    for name, value in values.items():
        if value < low:
            raise ValueError(f"need {name} >= {low}, got {name}={value}")
