"""Queries of an optimizer's state and reports.

A part of an optimizer keeps its state in a class of its own, so states are found by
class or by a predicate, wherever wrappers and groups put them (`find`, `replace`).
What a state class declares is read from it: which fields are moments (`moment_kinds`),
and where in a chain its part belongs (`chain_order`);
`fngrad.transforms.evaluation_point` reads its method ``eval_params``. Reports are found
by the end of their path (`reported`).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

import fngrad.tree as tree
from fngrad.tree.selection import at_any_depth
from fngrad.types import Metrics, OptState, Path, Tree

Kind: TypeAlias = type | Callable[[Any], bool]  # of nodes: a class or a predicate

KINDS = ("signed", "non_negative")  # how a state class declares its moments
# How it declares, as ``chain_order``, that its part belongs last in a chain: to make
# the last change of the updates, or to see the parameters after the step.
LAST_CHANGE, AFTER_STEP = 1, 2


def find(state: Any, kind: Kind) -> list[Any]:
    """Return the outermost nodes of a kind in a state, in the tree's order."""
    return [node for _, node in find_with_paths(state, kind)]


def find_with_paths(state: Any, kind: Kind) -> list[tuple[Path, Any]]:
    """Return the outermost nodes of a kind in a state, each with its path."""
    is_kind = _predicate(kind)
    nodes, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_kind)
    return [(tree.path_string(path), node) for path, node in nodes if is_kind(node)]


def replace(
    state: Tree,
    kind: Kind,
    fn: Callable[..., Any],
    *rest: Any,
    part: str | None = None,
) -> Tree:
    """Return the state with ``fn(node, *others)`` for its outermost nodes of a kind.

    Args:
        state: an optimizer's state, or any tree that contains one.
        kind: which nodes to replace.
        fn: takes a node, and the nodes of ``rest`` in its place.
        rest: trees with the structure of ``state``.
        part: the part of an optimizer that keeps such a node, if one is required.

    Raises:
        ValueError: if ``part`` is given and the state has no such node.
    """
    is_kind = _predicate(kind)
    if part is not None and not find(state, is_kind):
        raise ValueError(
            f"need an optimizer with the part {part}, got a state with the leaves "
            f"{list(tree.leaf_paths(state))}"
        )
    return jax.tree.map(
        lambda x, *others: fn(x, *others) if is_kind(x) else x,
        state,
        *rest,
        is_leaf=is_kind,
    )


def reported(reports: Metrics, ending: Path) -> Metrics:
    """Return the reports whose path is or ends with another, such as ``part/name``."""
    return {
        path: value
        for path, value in reports.items()
        if f"/{path}".endswith(f"/{ending}")
    }


def moment_kinds(state: OptState, globs: Mapping[str, tuple[str, ...]]) -> Any:
    """Return the state's tree with the kind of each moment, "" for other leaves.

    A state class declares its moments by the class attributes ``signed`` and
    ``non_negative``, tuples of field names.

    Args:
        state: a transform's state.
        globs: by kind, globs over the state's paths, for classes that declare nothing.

    Raises:
        ValueError: if a glob selects no leaf, or a leaf has two kinds.
    """
    paths = list(tree.leaf_paths(state))
    chosen = _declared(jax.tree.map(lambda leaf: "", state))
    for kind, glob in [(k, g) for k in KINDS for g in globs[k]]:
        selects = tree.selector_predicate(glob)
        if not any(selects(path, None) for path in paths):
            raise ValueError(
                f"need a glob that selects a leaf of the state, got {kind}={glob!r} "
                f"for {paths}{at_any_depth(glob, paths)}"
            )
        chosen = tree.map_with_path(_assign(kind, selects), chosen)
    return chosen


def chain_order(node: Any) -> int:
    """Return the ``chain_order`` of a node of a state, 0 if it may stand anywhere."""
    return getattr(type(node), "chain_order", 0)


def _assign(kind: str, selects: Callable[[Path, Any], bool]) -> Callable[..., str]:
    def assign(path: Path, before: str) -> str:
        if not selects(path, None):
            return before
        if before not in ("", kind):
            raise ValueError(
                f"need one kind per leaf, got {before} and {kind}: {path!r}"
            )
        return kind

    return assign


def _declared(blank: Any) -> Any:
    """Fill in the kinds that the classes in a tree of empty strings declare."""

    def declare(node: Any) -> Any:
        inner = type(node)(*map(_declared, node))
        moments = {
            name: jax.tree.map(lambda _, kind=kind: kind, getattr(node, name))
            for kind in KINDS
            for name in getattr(type(node), kind, ())
        }
        return inner._replace(**moments)

    return replace(blank, _is_declaring, declare)


def _is_declaring(node: Any) -> bool:
    return hasattr(node, "_fields") and any(hasattr(node, kind) for kind in KINDS)


def _predicate(kind: Kind) -> Callable[[Any], bool]:
    return (lambda x: isinstance(x, kind)) if isinstance(kind, type) else kind
