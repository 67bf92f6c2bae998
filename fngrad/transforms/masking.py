"""Different transforms for different leaves.

`partition` splits the leaves into groups, each with a transform of its own. Groups
are exhaustive: a leaf that no group selects is an error, never a leaf that receives
its raw gradient as an update. `masked` is the partition into two groups, `freeze`
the transform of leaves that do not move.
"""

from collections.abc import Sequence
from typing import Any

import jax

import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    chain,
    merge_report,
    unwrap,
)
from fngrad.types import Metrics, OptState, Params, Path, Selector, Updates


def partition(groups: Sequence[tuple[Selector, TransformLike]]) -> Transform:
    """Give each group of leaves a transform of its own.

    Args:
        groups: pairs of a selector and a transform, tried in order; the first that
            selects a leaf takes it. End with ``("**", ...)`` for the rest.

    Returns:
        A chain of one part, ``partition``. Its state has one entry per group, keyed
        by the glob (by position for other selectors), in which leaves of other
        groups are absent. A transform sees only its group: a global norm is the
        group's norm.

    Raises:
        ValueError: no groups, or two with one glob; at ``init``, a leaf that no group
            selects, or a glob that selects no leaf at all.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.partition([
        ...     ("embed/**", fg.freeze()),
        ...     ("**/bias", fg.sgd(0.1)),
        ...     ("**", fg.adamw(3e-4)),
        ... ])
    """
    keys = [s if isinstance(s, str) else str(i) for i, (s, _) in enumerate(groups)]
    if not keys:
        raise ValueError("need at least one group (selector, transform), got none")
    if len(set(keys)) < len(keys):
        raise ValueError(f"need a different glob for each group, got {keys}")
    return _grouped("partition", keys, groups)


def masked(
    inner: TransformLike, mask: Selector, otherwise: TransformLike | None = None
) -> Transform:
    """Apply a transform to the selected leaves only.

    Args:
        inner: the transform of the selected leaves.
        mask: a selector, see `fngrad.tree.select`.
        otherwise: the transform of the rest. ``None`` means `freeze`: an unselected
            leaf does not move, and its gradient is not computed. In the middle of a
            chain ``identity()`` hands the other updates on as they are.

    Example:
        >>> import fngrad as fg
        >>> head_only = fg.masked(fg.sgd(0.1), "head/**")
        >>> decay = fg.masked(
        ...     fg.add_decayed_weights(1e-2), "**/weight", otherwise=fg.identity()
        ... )
    """
    rest = freeze() if otherwise is None else otherwise
    groups = [(mask, inner), ("**", rest)]
    return _grouped("masked", ["selected", "rest"], groups)


def freeze() -> Transform:
    """Hold leaves where they are: zero updates, no state, no gradient computed."""
    return chain(
        Transform(
            init=lambda params: (),
            update=lambda updates, state, params: (tree.zeros_like(updates), state),
            name="freeze",
            trainable=lambda path, leaf: False,
        )
    )


def _grouped(
    name: str, keys: list[str], groups: Sequence[tuple[Selector, TransformLike]]
) -> Transform:
    selectors = [selector for selector, _ in groups]
    predicates = [tree.selector_predicate(selector) for selector in selectors]
    inners = [unwrap(transform) for _, transform in groups]

    def group_of(path: Path, leaf: Any) -> int:
        for index, predicate in enumerate(predicates):
            if predicate(path, leaf):
                return index
        raise ValueError(
            f"need a group for every leaf, got none for {path!r} in {keys}; "
            'end with ("**", ...)'
        )

    def assign(params: Params) -> list[Any]:
        groups_of_leaves = tree.map_with_path(group_of, params)
        return [
            jax.tree.map(lambda g, index=index: g == index, groups_of_leaves)
            for index in range(len(keys))
        ]

    def init(params: Params) -> OptState:
        for selector in selectors:
            _check_selects(selector, params)
        return {
            key: inner.init(tree.keep(mask, params))
            for key, inner, mask in zip(keys, inners, assign(params), strict=True)
        }

    def update(
        updates: Updates, state: OptState, params: Params
    ) -> tuple[Updates, OptState]:
        merged, new_state = jax.tree.map(lambda x: None, params), {}
        for key, inner, mask in zip(keys, inners, assign(params), strict=True):
            members = tree.keep(mask, updates), state[key], tree.keep(mask, params)
            part, new_state[key] = inner.update(*members)
            merged = tree.merge(merged, part)
        return merged, new_state

    def report(updates: Updates, state: OptState, params: Params) -> Metrics:
        reports: Metrics = {}
        for key, inner, mask in zip(keys, inners, assign(params), strict=True):
            if inner.report:
                members = tree.keep(mask, updates), state[key], tree.keep(mask, params)
                merge_report(reports, key, inner.report(*members))
        return reports

    def trainable(path: Path, leaf: Any) -> bool:
        rule = inners[group_of(path, leaf)].trainable
        return rule is None or rule(path, leaf)

    return chain(
        Transform(
            init,
            update,
            name=name,
            report=report if any(inner.report for inner in inners) else None,
            trainable=trainable if any(inner.trainable for inner in inners) else None,
        )
    )


def _check_selects(selector: Selector, params: Params) -> None:
    selected = jax.tree.leaves(tree.select(selector, params))
    if isinstance(selector, str) and selector != "**" and not any(selected):
        raise ValueError(
            f"need a glob that selects a leaf, got {selector!r} for the leaves "
            f"{list(tree.leaf_paths(params))}"
        )
