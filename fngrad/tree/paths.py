"""Leaves by path, such as ``layers/0/weight``."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from fngrad.types import Path, Tree

_SHOWN = 8  # paths that an error names


def path_string(path: Any) -> Path:
    """Write a key path as ``layers/0/weight``; the root is the empty string."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_paths(a: Any) -> dict[Path, Any]:
    """Return the leaves by path, in the tree's order.

    Raises:
        ValueError: if two leaves have one path, as in ``{"a/b": x, "a": {"b": y}}``.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(a)
    by_path: dict[Path, Any] = {}
    for entry, leaf in leaves:
        path = path_string(entry)
        if path in by_path:
            raise ValueError(f"need one path per leaf, got {path!r} twice")
        by_path[path] = leaf
    return by_path


def from_leaf_paths(like: Tree, by_path: dict[Path, Any]) -> Tree:
    """Return a tree shaped like ``like`` with the leaves of `leaf_paths`, by path.

    The order of ``by_path`` does not matter.

    Raises:
        ValueError: if a path is missing or not expected, or a shape or dtype differs.

    Example:
        >>> import fngrad.tree as tree
        >>> tree.from_leaf_paths({"a": 0.0, "b": [0.0]}, {"b/0": 2.0, "a": 1.0})
        {'a': 1.0, 'b': [2.0]}
    """
    expected = leaf_paths(like)
    difference = mismatch(expected, by_path)
    if difference:
        raise ValueError(f"need the leaves of the tree: {difference}")
    structure = jax.tree.structure(like)
    return structure.unflatten([by_path[path] for path in expected])


def get(a: Any, path: Path) -> Any:
    """Return the leaf at a path.

    Raises:
        KeyError: if there is none; the paths that are there are named.

    Example:
        >>> import fngrad.tree as tree
        >>> tree.get({"layers": [{"weight": 1.0}, {"weight": 2.0}]}, "layers/1/weight")
        2.0
    """
    leaves = leaf_paths(a)
    _check_paths([path], leaves)
    return leaves[path]


def set(a: Tree, values: dict[Path, Any]) -> Tree:
    """Return the tree with other leaves at these paths, whatever their shapes.

    Raises:
        KeyError: if there is no leaf at a path; the paths that are there are named.

    Example:
        >>> import fngrad.tree as tree
        >>> tree.set({"head": {"weight": 1.0, "bias": 0.0}}, {"head/bias": 0.5})
        {'head': {'bias': 0.5, 'weight': 1.0}}
    """
    leaves = leaf_paths(a)
    _check_paths(values, leaves)
    structure = jax.tree.structure(a)
    return structure.unflatten([values.get(path, x) for path, x in leaves.items()])


def _check_paths(paths: Iterable[Path], leaves: dict[Path, Any]) -> None:
    for path in paths:
        if path not in leaves:
            shown = ", ".join(map(repr, list(leaves)[:_SHOWN]))
            more = ", ..." if len(leaves) > _SHOWN else ""
            raise KeyError(
                f"need the path of a leaf, got {path!r}; there are {shown}{more}"
            )


def map_with_path(fn: Callable[..., Any], a: Tree, *rest: Any) -> Tree:
    """Map ``fn(path, leaf, *leaves)`` over trees of one structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(path_string(path), *leaves), a, *rest
    )


def mismatch(expected: Any, got: Any, *, dtypes: bool = True) -> str | None:
    """Return the first difference of two trees in structure, shape or dtype, or None.

    Leaves may be arrays, numbers or ShapeDtypeStructs.
    """
    want, have = leaf_paths(expected), leaf_paths(got)
    for path in have:
        if path not in want:
            return f"{_show(path)} is not expected"
    for path, leaf in want.items():
        if path not in have:
            return f"{_show(path)} is missing"
        other = have[path]
        if jnp.shape(leaf) != jnp.shape(other):
            return (
                f"{_show(path)} needs shape {jnp.shape(leaf)}, got {jnp.shape(other)}"
            )
        if dtypes and _dtype(leaf) != _dtype(other):
            return f"{_show(path)} needs dtype {_dtype(leaf)}, got {_dtype(other)}"
    if jax.tree.structure(expected) != jax.tree.structure(got):
        return (
            f"the containers differ: need {jax.tree.structure(expected)}, "
            f"got {jax.tree.structure(got)}"
        )
    return None


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _show(path: Path) -> str:
    return f"leaf {path!r}" if path else "the root"
