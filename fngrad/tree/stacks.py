"""Leaf by leaf, also where equal leaves are kept stacked.

Elementwise arithmetic does not depend on where one leaf ends and the next begins, and
maps over arrays with ``jax.tree.map``. What reads a leaf as a whole (its norm, its
shape, a matrix product, a mean over axes) maps with `map_leaves`, and so sees single
leaves in a `Stacked` too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fngrad.tree.paths import path_string
from fngrad.types import Path


class Stacked(NamedTuple):
    """Leaves of one shape and dtype, or what a rule keeps for each of them."""

    leaves: Any  # arrays whose first axis counts leaves


def map_leaves(fn: Callable[..., Any], a: Any, *rest: Any, outputs: int = 1) -> Any:
    """Map ``fn(leaf, *parts)`` over the leaves of ``a``.

    Args:
        fn: takes a leaf and what the other trees hold in its place, whole subtrees
            included; pure, since a stack of leaves is mapped with ``vmap``.
        a: a tree of arrays and stacks.
        rest: trees that have the structure of ``a`` or continue it below its leaves.
        outputs: how many values ``fn`` returns.

    Returns:
        A tree of results with the structure of ``a``; a tuple of ``outputs`` trees
        where that is not 1.

    Example:
        >>> import jax.numpy as jnp
        >>> grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
        >>> print(map_leaves(jnp.linalg.norm, grads))
        {'b': Array(0.5, dtype=float32), 'w': Array(5., dtype=float32)}
    """
    heads, structure = jax.tree.flatten(a, is_leaf=_is_stacked)
    parts = [structure.flatten_up_to(other) for other in rest]
    results = [_apply(fn, *arguments) for arguments in zip(heads, *parts, strict=True)]
    if outputs == 1:
        return structure.unflatten(results)
    columns = [[_pick(r, i) for r in results] for i in range(outputs)]
    return tuple(structure.unflatten(column) for column in columns)


def map_selected(fn: Callable[[Path, Any], Any], a: Any) -> Any:
    """Map ``fn(path, leaf)``; a `Stacked` is asked once, as the shape of its leaves."""

    def ask(path: Any, node: Any) -> Any:
        if not isinstance(node, Stacked):
            return fn(path_string(path), node)
        if node.leaves is None:
            return node
        one = jax.ShapeDtypeStruct(node.leaves.shape[1:], node.leaves.dtype)
        return Stacked(fn(path_string(path), one))

    return jax.tree_util.tree_map_with_path(
        ask, a, is_leaf=lambda x: isinstance(x, Stacked)
    )


def _is_stacked(x: Any) -> bool:
    return isinstance(x, Stacked) and x.leaves is not None  # None where it is a hole


def _apply(fn: Callable[..., Any], head: Any, *parts: Any) -> Any:
    if not _is_stacked(head):
        return fn(head, *parts)
    return Stacked(jax.vmap(fn)(head.leaves, *(part.leaves for part in parts)))


def _pick(result: Any, i: int) -> Any:
    return Stacked(result.leaves[i]) if _is_stacked(result) else result[i]
