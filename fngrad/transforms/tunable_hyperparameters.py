"""Hyperparameters in the state: read, logged, checkpointed, changed while running."""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.programs.signatures as signatures
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

_WAY_OUT = (
    "pass the factory and its arguments by name, "
    "fngrad.tunable(fngrad.adam, learning_rate=1e-3)"
)


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
        hyperparameters: its arguments, by name. Floats and scalar arrays are kept in
            the state; bools, ints, None, strings, callables (schedules) and everything
            else are static. Arguments that are left out have their default.

    Raises:
        TypeError: if ``factory`` is a transform.
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
    if not callable(factory):
        raise TypeError(
            "need a function that makes an optimizer, got "
            f"{signatures.kind_of(factory)}: {_WAY_OUT}"
        )
    if not kept:
        raise ValueError(
            f"need at least one float hyperparameter to keep, got {hyperparameters}: "
            f"{_WAY_OUT}; a schedule is not kept"
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


def set_hyperparameters(
    state: Tree, group: str | None = None, **values: Scalar
) -> Tree:
    """Return the state with new values for hyperparameters that `tunable` keeps.

    Args:
        state: an optimizer's state or anything that contains one, such as a
            TrainState.
        group: the glob of a group as it is written in `partition` (``group 0`` and so
            on for other selectors), or the name of a part that contains the `tunable`.
            ``None`` means every `tunable`.
        values: new values by name, numbers or scalar arrays. A value changes in every
            `tunable` of the group that keeps its name.

    Raises:
        ValueError: if no `tunable` in the state or the group keeps a name, or a value
            is not a scalar, is NaN, or is a negative learning rate.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> rule = fg.tunable(fg.adam, learning_rate=1e-3)
        >>> optimizer = fg.partition([("out/**", rule), ("**", rule)])
        >>> state = optimizer.init({"out": jnp.ones(2), "in": jnp.ones(2)})
        >>> state = fg.set_hyperparameters(state, "out/**", learning_rate=0.5)
        >>> for path, name, value in fg.hyperparameters(state):
        ...     print(path, name, value)
        partition/**/tunable learning_rate 0.001
        partition/out/**/tunable learning_rate 0.5
    """
    known: set[str] = set()

    def changed(keys: tuple[Any, ...], name: str, old: jax.Array) -> jax.Array:
        if group is not None and group not in keys:
            return old
        known.add(name)
        return _like(name, values.get(name, old), old)

    new_state = _map_with_keys(changed, state, ())
    unknown = sorted(values.keys() - known)
    if unknown or (group is not None and not known):
        raise ValueError(_unknown(state, group, known, unknown))
    return new_state


def hyperparameters(state: Any) -> list[tuple[Path, str, jax.Array]]:
    """Return the hyperparameters that `tunable` keeps in a state.

    Args:
        state: an optimizer's state or anything that contains one, such as a
            TrainState.

    Returns:
        Of each the path of the `tunable`, its name and its value.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.tunable(fg.adam, learning_rate=0.5)
        >>> fg.hyperparameters(optimizer.init(jnp.ones(3)))
        [('tunable', 'learning_rate', Array(0.5, dtype=float32))]
    """
    found = []
    for path, node in queries.find_with_paths(state, TunableState):
        found += [(path, name, value) for name, value in node.hyperparameters.items()]
        inner = hyperparameters(node.inner)
        found += [(f"{path}/inner/{below}", *own) for below, *own in inner]
    return found


def map_hyperparameters(fn: Callable[[str, jax.Array], jax.Array], state: Tree) -> Tree:
    """Map ``fn(name, value)`` over the hyperparameters that `tunable` keeps."""
    return _map_with_keys(lambda keys, name, value: fn(name, value), state, ())


def _map_with_keys(
    fn: Callable[[tuple[Any, ...], str, jax.Array], jax.Array],
    state: Tree,
    above: tuple[Any, ...],
) -> Tree:
    """Map ``fn(keys, name, value)``, the keys of the dicts that hold a `tunable`."""

    def mapped(path: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, TunableState):
            return node
        own = [entry for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        keys = (*above, *(entry.key for entry in own))
        kept = {name: fn(keys, name, x) for name, x in node.hyperparameters.items()}
        return TunableState(kept, _map_with_keys(fn, node.inner, keys))

    return jax.tree_util.tree_map_with_path(
        mapped, state, is_leaf=lambda x: isinstance(x, TunableState)
    )


def _unknown(state: Any, group: str | None, known: set[str], unknown: list[str]) -> str:
    """Return the message about names that no `tunable` keeps."""
    kept = hyperparameters(state)
    if not kept:
        got = signatures.kind_of(state)
        return f"need the state of a tunable, got {got} without one: {_WAY_OUT}"
    if not known:
        paths = list(dict.fromkeys(path for path, _, _ in kept))
        return (
            "need the glob of a group, or the name of a part, that contains a tunable, "
            f"got {group!r} for the tunables at {paths}"
        )
    where = "the state" if group is None else f"the group {group!r}"
    return (
        f"need names that a tunable in {where} keeps, {sorted(known)}, got {unknown}; "
        "kept is what tunable got by name as a float, not what it got as a schedule"
    )


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
