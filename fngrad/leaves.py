"""What is done leaf by leaf, also where equal leaves are kept stacked.

Elementwise arithmetic does not care where one leaf ends and the next begins, and maps
over arrays with ``jax.tree.map``. What reads a leaf as a whole (its norm, its shape, a
matrix product, a mean over axes) maps with `map_leaves`, and so sees single leaves in
a `Stacked` too. A *mask* selects leaves as `fngrad.tree.select` does; ``None`` selects
all. An *iterate* is a point that a rule keeps beside the parameters (where it began, a
second sequence, an average): at least float32, in memory of its own (`wide_copy`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.tree import Stacked
from fngrad.types import Params, Selector


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


def check_real(rule: str, params: Any) -> None:
    """Raise unless every leaf is real, for a rule that is not defined otherwise.

    Raises:
        TypeError: a complex leaf; the message has its path.
    """
    for path, leaf in tree.leaf_paths(params).items():
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"need real parameters for {rule}, got {leaf.dtype} at {path!r}"
            )


def selected(mask: Selector | None, params: Params) -> Any:
    """Return the tree of bools that says which leaves a mask selects."""
    return tree.select("**" if mask is None else mask, params)


def check_mask(mask: Selector | None, params: Params) -> None:
    """Raise unless a mask fits the parameters, and a glob selects a leaf.

    Raises:
        TypeError: no selector.
        ValueError: a glob that selects none, or a tree of bools that does not fit.
    """
    is_any = any(jax.tree.leaves(selected(mask, params)))
    if isinstance(mask, str) and not is_any:
        raise ValueError(
            f"need a mask that selects a leaf, got {mask!r} for the leaves "
            f"{list(tree.leaf_paths(params))}"
        )


def wide_copy(params: Params) -> Params:
    """Return a copy in at least float32; zeros where a leaf is only a shape."""

    def copy(p: jax.Array) -> jax.Array:
        dtype = tree.wide_dtype(p.dtype)
        if isinstance(p, jax.ShapeDtypeStruct):
            return jnp.zeros(p.shape, dtype)
        return jnp.array(p, dtype, copy=True)

    return jax.tree.map(copy, params)


def difference(a: Params, b: Params) -> Params:
    """Return a - b, both widened."""
    return tree.sub(tree.widen(a), tree.widen(b))


def _is_stacked(x: Any) -> bool:
    return isinstance(x, Stacked) and x.leaves is not None  # None where it is a hole


def _apply(fn: Callable[..., Any], head: Any, *parts: Any) -> Any:
    if not _is_stacked(head):
        return fn(head, *parts)
    return Stacked(jax.vmap(fn)(head.leaves, *(part.leaves for part in parts)))


def _pick(result: Any, i: int) -> Any:
    return Stacked(result.leaves[i]) if _is_stacked(result) else result[i]
