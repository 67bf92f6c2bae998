"""Maps over leaves, also where leaves of one shape and dtype are stacked.

Elementwise arithmetic does not depend on the boundaries of leaves, and maps over arrays
with ``jax.tree.map``. A function of whole leaves (a norm, a shape, a matrix product, a
mean over axes) is mapped with `map_leaves`, which calls it for the single leaves of a
`Stacked` too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fngrad.tree.paths import path_string
from fngrad.types import Path


class Stacked(NamedTuple):
    """Leaves of one shape and dtype, or the state that a rule keeps for each."""

    leaves: Any  # arrays whose first axis counts leaves


def map_leaves(
    fn: Callable[..., Any],
    a: Any,
    *rest: Any,
    outputs: int = 1,
    of_stack: Callable[[int], Callable[..., Any]] | None = None,
) -> Any:
    """Map ``fn(leaf, *parts)`` over the leaves of ``a``.

    Args:
        fn: takes a leaf and the corresponding parts of the other trees, leaves or
            subtrees; pure, since it is mapped over stacks with ``vmap``.
        a: a tree of arrays and stacks.
        rest: trees that have the structure of ``a`` or subtrees in place of its leaves.
        outputs: how many values ``fn`` returns.
        of_stack: what maps a stack of so many leaves; by default ``vmap`` of ``fn``.

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
    mapped = of_stack or (lambda count: jax.vmap(fn))
    results = [
        _apply(fn, mapped, *arguments) for arguments in zip(heads, *parts, strict=True)
    ]
    if outputs == 1:
        return structure.unflatten(results)
    columns = [[_pick(r, i) for r in results] for i in range(outputs)]
    return tuple(structure.unflatten(column) for column in columns)


def map_selected(fn: Callable[[Path, Any], Any], a: Any) -> Any:
    """Map ``fn(path, leaf)``, once per `Stacked`, with the shape of its leaves."""

    def apply(path: Any, node: Any) -> Any:
        if not isinstance(node, Stacked):
            return fn(path_string(path), node)
        if node.leaves is None:
            return node
        one = jax.ShapeDtypeStruct(node.leaves.shape[1:], node.leaves.dtype)
        return Stacked(fn(path_string(path), one))

    return jax.tree_util.tree_map_with_path(
        apply, a, is_leaf=lambda x: isinstance(x, Stacked)
    )


def _is_stacked(x: Any) -> bool:
    return isinstance(x, Stacked) and x.leaves is not None  # None is a hole


def _apply(
    fn: Callable[..., Any],
    of_stack: Callable[[int], Callable[..., Any]],
    head: Any,
    *parts: Any,
) -> Any:
    if not _is_stacked(head):
        return fn(head, *parts)
    mapped = of_stack(len(head.leaves))
    return Stacked(mapped(head.leaves, *(part.leaves for part in parts)))


def _pick(result: Any, i: int) -> Any:
    return Stacked(result.leaves[i]) if _is_stacked(result) else result[i]
