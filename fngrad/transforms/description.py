"""What an optimizer does with each parameter, as a table."""

from typing import Any

import jax

import fngrad.tree as tree
from fngrad.transforms.core import TransformLike
from fngrad.types import Params, Path


def describe(optimizer: TransformLike, params: Params) -> str:
    """Return a table of what an optimizer does with each parameter.

    One line a leaf: path, shape, dtype, whether it is trainable, and the state kept
    for it, with its bytes. The last line sums up.

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
    trainable = getattr(optimizer, "trainable", None) or (lambda path, leaf: True)
    state = tree.leaf_paths(jax.eval_shape(optimizer.init, params))
    leaves = tree.leaf_paths(params)
    learns = {path: trainable(path, leaf) for path, leaf in leaves.items()}
    kept = _state_by_leaf(state, leaves)
    rows = [("leaf", "shape", "dtype", "trainable", "state")]
    for path, leaf in leaves.items():
        answer = "yes" if learns[path] else "no"
        rows.append(
            (path, str(leaf.shape), str(leaf.dtype), answer, _sum_up(kept[path]))
        )
    size = sum(leaf.size for leaf in leaves.values())
    learned = sum(leaf.size for path, leaf in leaves.items() if learns[path])
    total = (
        f"{size} parameters, {learned} trainable, "
        f"{sum(map(_bytes, state.values()))} bytes of state"
    )
    return _table(rows, ("total", total))


def _state_by_leaf(
    state: dict[Path, Any], leaves: dict[Path, Any]
) -> dict[Path, dict[str, Any]]:
    """Give each parameter the state of its shape whose path ends in its own."""
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
    return f"{', '.join(names)}: {sum(map(_bytes, kept.values()))} bytes"


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _table(rows: list[tuple[str, ...]], footer: tuple[str, str]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = max(widths[0], len(footer[0]))
    lines = [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, f"{footer[0].ljust(widths[0])}  {footer[1]}"])
