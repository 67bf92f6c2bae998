"""Hyperparameters in the state: read, logged, checkpointed, changed while running."""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    unwrap,
    wrapper,
)
from fngrad.types import Metrics, OptState, Params, Path, Scalar, Tree, Updates


class TunableState(NamedTuple):
    """State of `tunable`."""

    hyperparameters: dict[str, jax.Array]  # shape (), float32 (float64 under x64)
    inner: OptState


def tunable(factory: Callable[..., TransformLike], **hyperparameters: Any) -> Transform:
    """Keep an optimizer's float hyperparameters in its state.

    Every value enters the arithmetic through `fngrad.numerics.hyper`, so the
    trajectory has the same bits as with the values written into the program, and a
    new value (`set_hyperparameters`) compiles nothing. It reports each value by name.

    Args:
        factory: makes a transform from keyword arguments, e.g. ``fngrad.rmsprop``.
        hyperparameters: its arguments. Floats and scalar arrays are kept in the
            state; bools, ints, None, strings, callables and everything else are
            static. Arguments that are left out have their default.

    Raises:
        ValueError: if ``factory`` raises it, or there is no float among the arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.tunable(fg.rmsprop, learning_rate=1e-3, decay=0.9)
        >>> state = optimizer.init(jnp.ones(3))
        >>> state = fg.set_hyperparameters(state, learning_rate=1e-4)
    """
    kept = {k: v for k, v in hyperparameters.items() if _is_data(v)}
    static = {k: v for k, v in hyperparameters.items() if k not in kept}
    if not kept:
        raise ValueError(
            f"need at least one float hyperparameter to keep, got {hyperparameters}"
        )
    initial = unwrap(factory(**hyperparameters))
    build = functools.partial(_build, factory, static)

    def init(params: Params) -> TunableState:
        strong = {name: _strong(value) for name, value in kept.items()}
        return TunableState(strong, initial.init(params))

    def advance(
        update_fn: UpdateFn, updates: Updates, state: TunableState, params: Params
    ) -> tuple[Updates, TunableState, Metrics]:
        updates, inner, metrics = update_fn(build(state), updates, state.inner, params)
        new_state = TunableState(state.hyperparameters, inner)
        return updates, new_state, state.hyperparameters | metrics

    return chain(wrapper(init, advance, "tunable", initial.trainable))


def set_hyperparameters(state: Tree, **values: Scalar) -> Tree:
    """Return the state with new values for hyperparameters that `tunable` keeps.

    Args:
        state: an optimizer's state or anything that contains one, such as a
            TrainState.
        values: new values by name, numbers or scalar arrays. A value changes in every
            `tunable` that keeps its name.

    Raises:
        ValueError: if no `tunable` in the state keeps a name, or a value is not a
            scalar, is NaN, or is a negative learning rate.
    """
    known: set[str] = set()

    def changed(name: str, old: jax.Array) -> jax.Array:
        known.add(name)
        return _like(name, values.get(name, old), old)

    state = map_hyperparameters(changed, state)
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(
            f"need names that a tunable in the state keeps, {sorted(known)}, "
            f"got {unknown}"
        )
    return state


def hyperparameters(state: Any) -> list[tuple[Path, str, jax.Array]]:
    """Return the hyperparameters that `tunable` keeps in a state.

    Args:
        state: an optimizer's state or anything that contains one.

    Returns:
        Of each the path of the `tunable`, its name and its value.
    """
    found = []
    for path, node in queries.find_with_paths(state, TunableState):
        found += [(path, name, value) for name, value in node.hyperparameters.items()]
        inner = hyperparameters(node.inner)
        found += [(f"{path}/inner/{below}", *own) for below, *own in inner]
    return found


def map_hyperparameters(fn: Callable[[str, jax.Array], jax.Array], state: Tree) -> Tree:
    """Map ``fn(name, value)`` over the hyperparameters that `tunable` keeps."""

    def mapped(node: TunableState) -> TunableState:
        kept = {name: fn(name, value) for name, value in node.hyperparameters.items()}
        return TunableState(kept, map_hyperparameters(fn, node.inner))

    return queries.replace(state, TunableState, mapped)


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
