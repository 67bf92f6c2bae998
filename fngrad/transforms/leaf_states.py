"""Which arrays of an optimizer's state belong to which parameter."""

from typing import Any, NamedTuple

import jax

import fngrad.tree as tree
from fngrad.transforms.quantized_update import is_short
from fngrad.transforms.stacking import StackLeavesState
from fngrad.types import OptState, Params, Path


class LeafStates(NamedTuple):
    """The bytes of a state, by the path of what holds them."""

    of_leaves: dict[Path, dict[Path, int]]  # by the path of the parameter
    shared: dict[Path, int]  # of arrays that belong to no parameter; no scalars


class _Layout(NamedTuple):
    """A tree that has a value for each parameter."""

    structure: Any
    owners: list[list[Path]]  # the parameters that each of its leaves belongs to
    only: Any = None  # the parameter, if they are one array and not a tree


def state_by_leaf(state: OptState, params: Params) -> LeafStates:
    """Return which bytes of a state belong to which parameter.

    A node of the state belongs to the parameters leaf by leaf if it has their
    structure, with anything in place of a leaf. Stacks belong to their leaves in equal
    parts.

    Args:
        state: made for these parameters; its leaves may be abstract.
        params: the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> state_by_leaf(fg.shampoo(0.1).init(params), params).of_leaves["w"]
        {'scale_by_shampoo/statistics': 52, 'scale_by_shampoo/roots': 52}
    """
    found = LeafStates({path: {} for path in tree.leaf_paths(params)}, {})
    _visit("", state, _layout_of(params), params, found)
    return found


def num_bytes(a: Any) -> int:
    """Return the size of a tree's arrays, which may be abstract, in bytes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(a))


def stack_name(leaf: Any) -> str:
    """Return the name of the stack in which `stack_leaves` puts a leaf."""
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"


def _visit(
    path: Path, node: Any, layout: _Layout, params: Params, found: LeafStates
) -> None:
    """Find the owners of a node, or those of what is in it."""
    if isinstance(node, StackLeavesState):
        layout = _layout_of_stacks(node, params)
    parts = _parts(node, layout)
    if parts is not None:
        for part, owners in zip(parts, layout.owners, strict=True):
            for owner in owners if num_bytes(part) else []:
                found.of_leaves[owner][path] = num_bytes(part) // len(owners)
        return
    children, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    if not jax.tree_util.treedef_is_leaf(structure):
        for entry, child in children:
            below = f"{path}/{tree.path_string(entry)}".removeprefix("/")
            _visit(below, child, layout, params, found)
    elif getattr(node, "ndim", 0) > 0:  # a node without children is no array
        found.shared[path] = num_bytes(node)


def _parts(node: Any, layout: _Layout) -> list[Any] | None:
    """Return a node's part for each leaf of a layout, or None if it has others."""
    if layout.only is not None:  # any node has its structure
        is_array = is_short(node) or hasattr(node, "dtype")
        is_own = is_array and (node.shape or not layout.only.shape)
        return [node] if is_own and tree.is_float(node) else None
    try:
        return layout.structure.flatten_up_to(node)
    except ValueError:  # another structure
        return None


def _layout_of(params: Params) -> _Layout:
    structure = jax.tree.structure(params)
    owners = [[path] for path in tree.leaf_paths(params)]
    is_leaf = jax.tree_util.treedef_is_leaf(structure)
    return _Layout(structure, owners, params if is_leaf else None)


def _layout_of_stacks(state: StackLeavesState, params: Params) -> _Layout:
    members: dict[str, list[Path]] = {}
    for path, leaf in tree.leaf_paths(params).items():
        if path in state.members.paths:
            members.setdefault(stack_name(leaf), []).append(path)
    names = sorted(members)
    structure = jax.tree.structure(dict.fromkeys(names, 0))
    return _Layout(structure, [members[name] for name in names])
