"""A table of what an optimizer does with each parameter."""

from typing import Any

import jax

import fngrad.programs.text_tables as text_tables
import fngrad.tree as tree
from fngrad.transforms.core import TransformLike, chain, trainable_leaves
from fngrad.transforms.quantized_update import is_short
from fngrad.types import Params, Path


def describe(optimizer: TransformLike, params: Params) -> str:
    """Return a table of what an optimizer does with each parameter.

    One line per leaf: path, shape, dtype, whether it is trainable, and the state kept
    for it, with its bytes. The last line has the totals.

    Args:
        optimizer: a transform.
        params: arrays or ShapeDtypeStructs; nothing is computed.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = {"embed": jnp.ones((5, 2)), "head": jnp.ones(2)}
        >>> optimizer = fg.partition([("embed", fg.freeze()), ("**", fg.adam(1e-3))])
        >>> print(fg.describe(optimizer, params))
        leaf   shape   dtype    trainable  state
        embed  (5, 2)  float32  no         none
        head   (2,)    float32  yes        scale_by_adam/mu, scale_by_adam/nu: 16 bytes
        total  12 parameters, 2 trainable, 24 bytes of state
    """
    state = jax.eval_shape(optimizer.init, params)
    arrays, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_short)
    leaves = tree.leaf_paths(params)
    is_trainable = tree.leaf_paths(trainable_leaves(chain(optimizer), params))
    trainable = {p: leaf for p, leaf in leaves.items() if is_trainable[p]}
    by_path = {tree.path_string(path): array for path, array in arrays}
    kept = _state_by_leaf(by_path, leaves)
    rows = [["leaf", "shape", "dtype", "trainable", "state"]]
    for path, leaf in leaves.items():
        answer = "yes" if path in trainable else "no"
        row = [path, str(leaf.shape), str(leaf.dtype), answer, _sum_up(kept[path])]
        rows.append(row)
    sizes = [sum(x.size for x in some.values()) for some in (leaves, trainable)]
    total = (
        f"{sizes[0]} parameters, {sizes[1]} trainable, "
        f"{num_bytes(state)} bytes of state"
    )
    return text_tables.table([*rows, ["total", total]])


def _state_by_leaf(
    state: dict[Path, Any], leaves: dict[Path, Any]
) -> dict[Path, dict[str, Any]]:
    """Return each parameter's state: arrays of its shape whose path ends in its own."""
    kept: dict[Path, dict[str, Any]] = {path: {} for path in leaves}
    for full, leaf in state.items():
        owners = [
            path
            for path, param in leaves.items()
            if f"/{full}".endswith(f"/{path}") or not path
            if leaf.shape == param.shape
        ]
        if owners:
            owner = max(owners, key=len)
            kept[owner][full.removesuffix(owner).removesuffix("/")] = leaf
    return kept


def _sum_up(kept: dict[str, Any]) -> str:
    if not kept:
        return "none"
    names = ["/".join(prefix.split("/")[-2:]) for prefix in kept]
    return f"{', '.join(names)}: {num_bytes(kept)} bytes"


def num_bytes(a: Any) -> int:
    """Return the size of a tree's arrays, which may be abstract, in bytes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(a))
