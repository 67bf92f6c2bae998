"""Stacked layers, each of which an optimizer sees as leaves of its own.

`fngrad.layers.repeat` keeps the parameters of equal layers in one array. A rule of
single entries does not notice; a rule of whole leaves, such as Muon, would take the
stack for one leaf.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax

import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    unwrap,
    wrapper,
)
from fngrad.transforms.evaluation_point import evaluation_point
from fngrad.transforms.stacking import Members
from fngrad.tree import Stacked
from fngrad.types import Metrics, OptState, Params, Path, Selector, Tree, Updates


class LayerwiseState(NamedTuple):
    """State of `layerwise`."""

    inner: OptState  # of the stacks
    members: Members  # the paths of the stacks

    def eval_params(self, params: Params) -> Params:
        """Return the evaluation point of the inner state."""
        stacked = _as_stacks(self.members.paths, params)
        return _as_arrays(evaluation_point(self.inner, stacked))


def layerwise(inner: TransformLike, layers: Selector) -> Transform:
    """Treat every layer in stacked parameters as leaves of its own.

    The first axis of each selected array counts layers, as in the parameters of
    `fngrad.layers.repeat`. Updates are the stacked updates that ``inner`` makes for the
    layers one by one, also where it uses norms, shapes or matrices of single leaves;
    random draws are made per stack, and differ.

    Args:
        inner: a transform. A selector in it is called once per stack, with its path and
            the shape of one layer's array.
        layers: which leaves are stacks, such as ``"blocks/**"``.

    Raises:
        TypeError: if ``layers`` is not a selector.
        ValueError: at ``init``, if it is a glob that selects no leaf, or it selects a
            scalar.

    Example:
        >>> import jax
        >>> import fngrad as fg
        >>> model = fg.models.transformer(11, 8, features=8, num_layers=3, scan=True)
        >>> optimizer = fg.layerwise(fg.muon(0.02), "blocks/**")
        >>> state = optimizer.init(model.init(jax.random.key(0)))
    """
    within, selects = unwrap(inner), tree.selector_predicate(layers)

    def init(params: Params) -> LayerwiseState:
        tree.check_mask(layers, params)
        chosen = {p: x for p, x in tree.leaf_paths(params).items() if selects(p, x)}
        for path, x in chosen.items():
            if x.ndim == 0:
                raise ValueError(f"need stacked layers at {path!r}, got a scalar")
        stacked = _as_stacks(chosen, params)
        return LayerwiseState(within.init(stacked), Members(tuple(chosen)))

    def advance(
        update_fn: UpdateFn, updates: Updates, state: LayerwiseState, params: Params
    ) -> tuple[Updates, LayerwiseState, Metrics]:
        stacked = (_as_stacks(state.members.paths, a) for a in (updates, params))
        gradients, weights = stacked
        made, new, metrics = update_fn(within, gradients, state.inner, weights)
        return _as_arrays(made), LayerwiseState(new, state.members), metrics

    def trainable(path: Path, leaf: Any) -> bool:
        if selects(path, leaf):
            leaf = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return within.trainable is None or within.trainable(path, leaf)

    rule = None if within.trainable is None else trainable
    return chain(wrapper(init, advance, "layerwise", rule))


def _as_stacks(paths: Collection[Path], a: Tree) -> Tree:
    return tree.map_with_path(lambda path, x: Stacked(x) if path in paths else x, a)


def _as_arrays(a: Tree) -> Tree:
    def array_of(x: Any) -> Any:
        return x.leaves if isinstance(x, Stacked) else x

    return jax.tree.map(array_of, a, is_leaf=lambda x: isinstance(x, Stacked))
