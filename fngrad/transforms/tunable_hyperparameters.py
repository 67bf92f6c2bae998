"""Wrappers that keep something for the transform they wrap.

`tunable` keeps hyperparameters in the state, where they can be read, logged,
checkpointed and changed without compiling again.
"""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.transforms.core import (
    Run,
    Transform,
    TransformLike,
    chain,
    unwrap,
    wrapping,
)
from fngrad.types import Metrics, OptState, Params, Scalar, Updates


class TunableState(NamedTuple):
    """State of `tunable`."""

    hyperparameters: dict[str, jax.Array]  # shape (), float32 (float64 under x64)
    inner: OptState


def tunable(factory: Callable[..., TransformLike], **hyperparameters: Any) -> Transform:
    """Keep an optimizer's float hyperparameters in its state.

    Every value enters the arithmetic through `fngrad.numerics.hyper`, so the
    trajectory has the same bits as with the values written into the program, and a
    new value (`set_hyperparameters`) compiles nothing. Reports each value by name.

    Args:
        factory: makes a transform from keyword arguments, e.g. ``fngrad.rmsprop``.
        hyperparameters: its arguments. Floats and scalar arrays are kept in the
            state; bools, ints, None, strings, callables and everything else are
            static. Arguments that are not given stay at their default.

    Raises:
        ValueError: whatever ``factory`` refuses, or no float among the arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.tunable(fg.rmsprop, learning_rate=1e-3, decay=0.9)
        >>> state = optimizer.init(jnp.ones(3))
        >>> state = fg.set_hyperparameters(state, learning_rate=1e-4)
    """
    moving = {k: v for k, v in hyperparameters.items() if _is_data(v)}
    static = {k: v for k, v in hyperparameters.items() if k not in moving}
    if not moving:
        raise ValueError(
            f"need at least one float hyperparameter to keep, got {hyperparameters}"
        )
    given = unwrap(factory(**hyperparameters))
    build = functools.partial(_build, factory, static)

    def init(params: Params) -> TunableState:
        kept = {name: _strong(value) for name, value in moving.items()}
        return TunableState(kept, given.init(params))

    def advance(
        run: Run, updates: Updates, state: TunableState, params: Params
    ) -> tuple[Updates, TunableState, Metrics]:
        updates, inner, told = run(build(state), updates, state.inner, params)
        new_state = TunableState(state.hyperparameters, inner)
        return updates, new_state, state.hyperparameters | told

    return chain(wrapping(init, advance, "tunable", given.trainable))


def set_hyperparameters(state: Any, **values: Scalar) -> Any:
    """Return the state with new values for hyperparameters that `tunable` keeps.

    Args:
        state: an optimizer's state or anything that holds one, such as a TrainState.
        values: new values by name, numbers or scalar arrays. A name changes in every
            `tunable` that keeps it.

    Raises:
        ValueError: no `tunable` in the state keeps the name, or a value is not a
            scalar, is NaN, or is a negative learning rate.
    """
    known: set[str] = set()

    def replace(node: Any) -> Any:
        if not isinstance(node, TunableState):
            return node
        known.update(node.hyperparameters)
        kept = {
            name: _like(name, values.get(name, old), old)
            for name, old in node.hyperparameters.items()
        }
        return TunableState(kept, _map_tunables(replace, node.inner))

    state = _map_tunables(replace, state)
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(
            f"need names that a tunable in the state keeps, {sorted(known)}, "
            f"got {unknown}"
        )
    return state


def _map_tunables(fn: Callable[[Any], Any], state: Any) -> Any:
    return jax.tree.map(fn, state, is_leaf=lambda x: isinstance(x, TunableState))


def _is_data(value: Any) -> bool:
    if isinstance(value, numbers.Real):
        return not isinstance(value, numbers.Integral)
    is_scalar = hasattr(value, "dtype") and jnp.shape(value) == ()
    return is_scalar and jnp.issubdtype(value.dtype, jnp.number)


def _strong(value: Scalar) -> jax.Array:
    return jnp.array(value, dtype=jnp.result_type(float), copy=True)


def _like(name: str, value: Scalar, old: jax.Array) -> jax.Array:
    if jnp.shape(value) != ():
        raise ValueError(f"need a scalar for {name}, got shape {jnp.shape(value)}")
    lowest = 0.0 if name == "learning_rate" else -math.inf
    numerics.check_number(name, value, low=lowest)
    return jnp.broadcast_to(jnp.asarray(value).astype(old.dtype), old.shape)


def _build(
    factory: Callable[..., TransformLike], static: dict[str, Any], state: TunableState
) -> Transform:
    return unwrap(factory(**static, **state.hyperparameters))
