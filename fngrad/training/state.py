"""All that changes while training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import (
    TransformLike,
    chain,
)
from fngrad.types import (
    Key,
    ModelState,
    OptState,
    Params,
    Path,
    Tree,
)


class TrainState(NamedTuple):
    """All that changes while training."""

    step: jax.Array  # int32, shape (); steps made so far
    key: Key  # typed, shape (); never changes
    params: Params
    opt_state: OptState
    model_state: ModelState  # () unless the loss carries one


def init_state(
    params: Params,
    optimizer: TransformLike,
    key: int | Key,
    model_state: ModelState = (),
) -> TrainState:
    """Return the state of step 0.

    Args:
        params: a pytree of float or complex arrays.
        optimizer: the transform that will be given to `make_step`.
        key: a typed key or an int of any size; all randomness of the run derives
            from it.
        model_state: what the model carries but does not learn, e.g. batch statistics.

    Raises:
        TypeError: a leaf is no array, or a trainable leaf is an integer array; a key
            that is neither a typed key nor an int; an optimizer or a model as params.
        ValueError: no parameters, a masked array.
    """
    if hasattr(params, "init"):
        what = "an optimizer" if hasattr(params, "update") else "a model"
        raise TypeError(
            f"need init_state(params, optimizer, key), got {what} as params; "
            "model.init(key) gives a model's parameters"
        )
    opt_state = chain(optimizer).init(params)
    for path, leaf in tree.leaf_paths(model_state).items():
        numerics.check_unmasked(f"model_state at {path!r}", leaf)
    params, model_state = tree.strong((params, model_state))
    return TrainState(
        numerics.first_step(), numerics.key(key), params, opt_state, model_state
    )


def snapshot(state: Tree) -> Tree:
    """Return a copy of every array, in memory of its own, strongly typed.

    A copy survives the donation of the original; leaves that were one array become
    two.

    Raises:
        ValueError: a masked array.
    """

    def copied(path: Path, x: Any) -> jax.Array:
        numerics.check_unmasked(f"a state at {path!r}", x)
        return jnp.array(x, dtype=x.dtype, copy=True)

    return tree.map_with_path(copied, state)
