"""Leaves of one shape and dtype, kept as one array.

A program's size and overhead grow with the number of arrays, not of entries: a thousand
small leaves take seconds to compile and milliseconds to update. A *stack* is one array
for all leaves of one shape and dtype; its first axis counts the leaves, and its name is
their shape and dtype, ``float32[3,2]``. Rules that read whole leaves see single leaves
in it (`fngrad.tree.stacks.map_leaves`).

`stack` stacks parameters once. With a model that reads stacks, such as a scan over
layers, the size of the program no longer depends on the number of leaves.
`stack_leaves` keeps stacks in an optimizer's state, for any parameters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.sharding.constraints import undivided
from fngrad.sharding.meshes import AnyMesh, auto_mesh_of
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    unwrap,
    wrapper,
)
from fngrad.transforms.evaluation_point import evaluation_point
from fngrad.tree import Stacked
from fngrad.types import Metrics, OptState, Params, Path, Updates

Stacks = dict[str, Stacked]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Members:
    """The paths of a state's leaves: part of its structure, without arrays."""

    paths: tuple[Path, ...]


class StackLeavesState(NamedTuple):
    """State of `stack_leaves`."""

    inner: OptState  # of the stacks
    members: Members

    def eval_params(self, params: Params) -> Params:
        """Return the evaluation point of the inner state, as single leaves."""
        part = tree.map_with_path(
            lambda path, p: p if path in self.members.paths else None, params
        )
        layout = _layout_of(part)
        stacks = _gather(layout, part)
        return _scatter(layout, evaluation_point(self.inner, stacks))


def stack(params: Params) -> tuple[Stacks, Callable[[Stacks], Params]]:
    """Put parameters of one shape and dtype into one array.

    Args:
        params: a pytree of arrays; stacks in it are joined with the others.

    Returns:
        ``(stacks, unstack)``: a dict of stacks by shape and dtype, with leaves in the
        order of the tree, and the function that returns the tree of them.
        Train the stacks like any parameters, with
        ``loss_fn = lambda stacks, batch: loss(unstack(stacks), batch)``, or better
        with a model that reads stacks: ``unstack`` is one slice per leaf in the
        program, and its derivative one concatenation.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = {"a": jnp.ones(2), "b": jnp.zeros(()), "c": jnp.arange(2.0)}
        >>> stacks, unstack = fg.stack(params)
        >>> print({name: stack.leaves.shape for name, stack in stacks.items()})
        {'float32[2]': (2, 2), 'float32[]': (1,)}
        >>> print(unstack(stacks)["c"])
        [0. 1.]
    """
    layout = _layout_of(params)
    return _gather(layout, params), lambda stacks: _scatter(layout, stacks)


def stack_leaves(inner: TransformLike) -> Transform:
    """Keep the state of leaves of one shape and dtype in one array.

    Updates are those of ``inner``, also where it uses norms or shapes of single leaves;
    random draws are made per stack, and differ. The state is a few stacks instead of
    arrays for each leaf. Parameters that are stacks (see `stack`) are used as they are,
    at no cost, and the time to compile and to step no longer depends on the number of
    leaves. An ordinary tree is stacked, and its updates unstacked, in every step: with
    hundreds of small leaves a step is up to a few times faster than without stacks, but
    takes two to three times as long to compile, since every slice is compiled
    separately.

    Args:
        inner: a transform that trains all leaves. A selector in it is called once per
            stack, with a path like ``float32[3]`` and the shape of a single leaf, so
            wrap rules that differ between leaves of one shape separately, inside a
            `partition` or `masked`.

    Raises:
        ValueError: if ``inner`` freezes leaves; at ``init``, if a glob in it selects
            no stack.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = [jnp.ones(3)] * 100
        >>> optimizer = fg.stack_leaves(fg.adam(1e-3))
        >>> state = optimizer.init(params)["stack_leaves"].inner
        >>> print(state["scale_by_adam"].mu["float32[3]"].leaves.shape)
        (100, 3)
    """
    within = unwrap(inner)
    if within.trainable is not None:
        raise ValueError(
            "need a transform that trains all leaves inside stack_leaves: leaves have "
            "no paths there; freeze leaves outside it: "
            'partition([("frozen/**", freeze()), ("**", stack_leaves(...))])'
        )

    def init(params: Params) -> StackLeavesState:
        stacks = _gather(_layout_of(params), params)
        members = Members(tuple(tree.leaf_paths(params)))
        return StackLeavesState(within.init(stacks), members)

    def advance(
        update_fn: UpdateFn, updates: Updates, state: StackLeavesState, params: Params
    ) -> tuple[Updates, StackLeavesState, Metrics]:
        layout = _layout_of(params)
        mesh = auto_mesh_of(updates, state, params)
        gradients, weights = (_gather(layout, x, mesh) for x in (updates, params))
        made, new, metrics = update_fn(within, gradients, state.inner, weights)
        new_updates = _scatter(layout, made, mesh)
        return new_updates, StackLeavesState(new, state.members), metrics

    return chain(wrapper(init, advance, "stack_leaves"))


class _Layout(NamedTuple):
    """The position in the stacks of each node of a tree, a leaf or a stack."""

    structure: Any  # whose leaves are the nodes
    nodes: list[Any]
    groups: dict[str, list[int]]  # positions among the nodes


def _layout_of(params: Params) -> _Layout:
    nodes, structure = jax.tree.flatten(params, is_leaf=_is_stacked)
    groups: dict[str, list[int]] = {}
    for position, node in enumerate(nodes):
        groups.setdefault(_name_of(node), []).append(position)
    return _Layout(structure, nodes, groups)


def _name_of(node: Any) -> str:
    array = node.leaves if _is_stacked(node) else node
    shape = array.shape[1:] if _is_stacked(node) else array.shape
    return f"{array.dtype.name}[{','.join(map(str, shape))}]"


def _gather(layout: _Layout, a: Any, mesh: AnyMesh | None = None) -> Stacks:
    nodes = layout.structure.flatten_up_to(a)
    return {
        name: Stacked(_join([nodes[i] for i in positions], mesh))
        for name, positions in layout.groups.items()
    }


def _join(nodes: list[Any], mesh: AnyMesh | None) -> jax.Array:
    rows = [_rows(node) for node in nodes]
    return rows[0] if len(rows) == 1 else undivided(jnp.concatenate(rows), mesh)


def _rows(node: Any) -> jax.Array:
    array = node.leaves if _is_stacked(node) else node
    if isinstance(array, jax.ShapeDtypeStruct):
        array = jnp.zeros(array.shape, array.dtype)
    return array if _is_stacked(node) else jnp.asarray(array)[None]


def _scatter(layout: _Layout, stacks: Stacks, mesh: AnyMesh | None = None) -> Any:
    nodes: list[Any] = [None] * len(layout.nodes)
    for name, positions in layout.groups.items():
        olds = [layout.nodes[i] for i in positions]
        sizes = [old.leaves.shape[0] if _is_stacked(old) else 1 for old in olds]
        joined = stacks[name].leaves
        joined = joined if len(sizes) == 1 else undivided(joined, mesh)
        parts = jax.lax.split(joined, sizes)
        for i, old, part in zip(positions, olds, parts, strict=True):
            nodes[i] = (
                Stacked(part) if _is_stacked(old) else jax.lax.squeeze(part, (0,))
            )
    return layout.structure.unflatten(nodes)


def _is_stacked(x: Any) -> bool:
    return isinstance(x, Stacked)
