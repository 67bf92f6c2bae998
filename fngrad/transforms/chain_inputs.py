"""What enters a chain, and what its parts return, checked."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.programs.signatures as signatures
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.types import OptState, Params, Path, Reported, Updates


def widen_gradients(updates: Updates, params: Params) -> Updates:
    """Return gradients in the dtype of the arithmetic, at least float32."""

    def wide(update: Any, param: Any) -> jax.Array:
        if getattr(update, "dtype", None) == jax.dtypes.float0:  # of an integer leaf
            return jnp.zeros_like(param)
        return jnp.asarray(update, tree.wide_dtype(param.dtype))

    return jax.tree.map(wide, updates, params)


def check_params(params: Params, trainable: Callable[[Path, Any], bool] | None) -> None:
    """Raise unless all parameters are arrays, and the trainable ones float or complex.

    Raises:
        TypeError: if a leaf is not an array, or a trainable leaf is neither float nor
            complex.
        ValueError: if there are no leaves, or one is a masked array.
    """
    leaves = tree.leaf_paths(params)
    if not leaves:
        raise ValueError("need parameters with at least one leaf, got an empty tree")
    for path, leaf in leaves.items():
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"need arrays as parameters, got {type(leaf).__name__} at {path!r}; "
                "jnp.asarray makes one of a number, and "
                "params, rebuild = fngrad.split(model) separates arrays from the rest"
            )
        numerics.check_unmasked(f"parameters at {path!r}", leaf)
        if not tree.is_float(leaf) and (trainable is None or trainable(path, leaf)):
            raise TypeError(
                f"need float or complex parameters, got {leaf.dtype} at {path!r}; "
                "freeze() it in a partition, or keep it out of the parameters"
            )


def check_updates(updates: Updates, params: Params) -> None:
    """Raise unless gradients fit the parameters.

    Raises:
        TypeError: if the parameters are missing, or a gradient is not a float array.
        ValueError: if structures or shapes differ, a gradient of a real parameter is
            complex, or an array is masked.
    """
    if params is None:
        raise TypeError(
            "need the parameters in every update, got none: "
            "optimizer.update(grads, state, params)"
        )
    difference = tree.mismatch(params, updates, dtypes=False)
    if difference:
        raise ValueError(f"need gradients shaped like the parameters: {difference}")
    gradients = tree.leaf_paths(updates)
    for path, param in tree.leaf_paths(params).items():
        numerics.check_unmasked(f"gradients at {path!r}", gradients[path])
        dtype = getattr(gradients[path], "dtype", type(gradients[path]).__name__)
        if tree.is_float(param) and not tree.is_float(gradients[path]):
            raise TypeError(f"need a float array as gradient, got {dtype} at {path!r}")
        if jnp.iscomplexobj(gradients[path]) and not jnp.iscomplexobj(param):
            raise ValueError(
                f"need a real gradient for a real parameter, got {dtype} at {path!r}"
            )


def check_signatures(name: str, transform: Any) -> None:
    """Raise unless the functions of a part take what `chain` passes.

    Raises:
        TypeError: if they take other arguments.
    """
    for form, fn in (
        ("init(params)", transform.init),
        ("update(updates, state, params)", transform.update),
    ):
        if not signatures.takes(fn, form.count(",") + 1):
            raise TypeError(
                f"need {form} in the transform {name!r}, got "
                f"{signatures.name_of(fn)} with the arguments "
                f"{list(signatures.parameters(fn))}"
            )


def check_state(state: OptState) -> None:
    """Raise unless the leaves of a state are arrays.

    Raises:
        TypeError: if one is not, such as a Python number.
    """
    if all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(state)):
        return
    for path, leaf in tree.leaf_paths(state).items():
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"need jax arrays in the state, got {type(leaf).__name__} at {path!r}; "
                "use jnp.asarray in init"
            )


def check_parts(states: list[tuple[str, OptState]]) -> None:
    """Raise unless the parts of a chain can stand in their order under their names.

    Args:
        states: the name and the state of each part.

    Raises:
        ValueError: if two parts with state have one name, or a part that belongs last
            is followed by one that does not, or belongs before it.
    """
    names = [name for name, _ in states]
    for name, state in states:
        if names.count(name) > 1 and not is_stateless(state):
            raise ValueError(
                f"two parts with state are called {name!r}; name them: "
                f'chain(named("first", {name}(...)), ...)'
            )
    last, order = "", 0
    for name, state in states:
        if queries.chain_order(state) < order:
            raise ValueError(
                f"need {last!r} last in a chain, where the updates are what is added "
                f"to the parameters, got {name!r} after it: "
                f"chain(..., {name}(...), {last}(...))"
            )
        latest = latest_order(state)
        if latest > order:
            last, order = name, latest


def latest_order(state: OptState) -> int:
    """Return the highest ``chain_order`` in a state, also inside of wrappers."""
    found = queries.find(state, lambda node: queries.chain_order(node) > 0)
    return max(map(queries.chain_order, found), default=0)


def is_stateless(state: OptState) -> bool:
    """Return whether a state is that of a part without one."""
    return isinstance(state, tuple) and len(state) == 0


def updated(
    name: str, made: Any, updates: Updates, state: OptState
) -> tuple[Updates, OptState]:
    """Return what the update of a part returned.

    Args:
        name: of the part.
        made: what it returned.
        updates, state: what it was given.

    Raises:
        TypeError: if it is not a pair, or the pair is in the wrong order.
    """
    if not isinstance(made, tuple) or len(made) != 2:
        got = type(made).__name__
        raise TypeError(f"need (updates, state) from the update of {name!r}, got {got}")
    given = jax.tree.structure(updates), jax.tree.structure(state)
    first, second = map(jax.tree.structure, made)
    if first != given[0] and (second, first) == given:
        raise TypeError(
            f"need (updates, state) from the update of {name!r}, got (state, updates): "
            "return the updates first"
        )
    return made


def reported(name: str, made: Any) -> Reported:
    """Return what the report of a part returned.

    Raises:
        TypeError: if it is not a triple that ends in a dict.
    """
    is_whole = isinstance(made, tuple) and len(made) == 3
    if not (is_whole and isinstance(made[2], Mapping)):
        raise TypeError(
            "need (updates, state, metrics) from a report, the update with metrics, "
            f"got {type(made).__name__} from {name}: "
            "return (*update(updates, state, params), metrics)"
        )
    return made
