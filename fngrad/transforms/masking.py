"""Different transforms for different leaves.

`partition` splits the leaves into groups, each with its own transform. Groups are
exhaustive: a leaf that no group selects is an error, so no leaf receives its raw
gradient as an update. `masked` is the partition into two groups; `freeze` is the
transform of leaves that are not trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

import fngrad.transforms.structure as structure
import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    merge_report,
    unwrap,
    wrapper,
)
from fngrad.types import OptState, Params, Path, Reported, Selector, Updates


def partition(groups: Sequence[tuple[Selector, TransformLike]]) -> Transform:
    """Give each group of leaves its own transform.

    Args:
        groups: pairs of a selector and a transform, tried in order; the first that
            selects a leaf applies. End with ``("**", ...)`` for the rest.

    Returns:
        A chain of one part, ``partition``. Its state has one entry per group, keyed
        by the glob (``group 0`` and so on for other selectors), without the leaves of
        other groups. A transform sees only its group: a global norm is the group's
        norm. The metrics of a step have each group's learning rate, as
        ``learning_rate/embed/**``.

    Raises:
        TypeError: if ``groups`` is a dict, or contains an object of another type than
            a selector and a transform.
        ValueError: if there are no groups, or two with one glob; at ``init``, if a
            leaf is in no group, or a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.partition([
        ...     ("embed/**", fg.freeze()),
        ...     ("**/bias", fg.sgd(0.1)),
        ...     ("**", fg.adamw(3e-4)),
        ... ])
    """
    if isinstance(groups, Mapping):
        raise TypeError(
            "need pairs (selector, transform), in the order in which they are tried, "
            "got a dict"
        )
    keys = [
        selector if isinstance(selector, str) else f"group {position}"
        for position, (selector, _) in enumerate(groups)
    ]
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
            leaf is not trained, and its gradient is not computed. In the middle of a
            chain use ``identity()``, which passes the other updates unchanged.

    Raises:
        TypeError: if ``mask`` is not a selector, or ``inner`` not a transform.
        ValueError: at ``init``, if a glob selects no leaf, or a tree of bools does not
            fit.

    Example:
        >>> import fngrad as fg
        >>> head_only = fg.masked(fg.sgd(0.1), "head/**")
        >>> decay = fg.masked(
        ...     fg.add_decayed_weights(1e-2), "**/weight", otherwise=fg.identity()
        ... )
    """
    rest = freeze() if otherwise is None else otherwise
    groups = [(mask, inner), ("**", rest)]
    return _grouped("masked", list(structure.MASKED), groups)


def freeze() -> Transform:
    """Do not train leaves: zero updates, no state, no gradient computed."""
    return chain(
        Transform(
            init=lambda params: (),
            update=lambda updates, state, params: (tree.zeros_like(updates), state),
            name="freeze",
            trainable=lambda path, leaf: False,
        )
    )


class _Group(NamedTuple):
    key: str
    takes: Callable[[Path, Any], bool]
    inner: Transform


def _grouped(
    name: str, keys: list[str], pairs: Sequence[tuple[Selector, TransformLike]]
) -> Transform:
    groups = [
        _Group(key, tree.selector_predicate(selector), unwrap(transform))
        for key, (selector, transform) in zip(keys, pairs, strict=True)
    ]

    def init(params: Params) -> OptState:
        for selector, _ in pairs:
            tree.check_mask(selector, params)
        masks = _masks(groups, params)
        return {g.key: g.inner.init(tree.keep(masks[g.key], params)) for g in groups}

    def advance(
        update_fn: UpdateFn, updates: Updates, state: OptState, params: Params
    ) -> Reported:
        merged, new_state, reports = jax.tree.map(lambda x: None, params), {}, {}
        for group, members in _members(groups, updates, state, params):
            part, new_state[group.key], metrics = update_fn(group.inner, *members)
            merged = tree.merge(merged, part)
            merge_report(reports, group.key, metrics)
        return merged, new_state, reports

    def trainable(path: Path, leaf: Any) -> bool:
        rule = _group_of(groups, path, leaf).inner.trainable
        return rule is None or rule(path, leaf)

    has_trainable = any(group.inner.trainable for group in groups)
    return chain(wrapper(init, advance, name, trainable if has_trainable else None))


def _group_of(groups: list[_Group], path: Path, leaf: Any) -> _Group:
    for group in groups:
        if group.takes(path, leaf):
            return group
    raise ValueError(
        f"need a group for every leaf, got none for {path!r} in "
        f'{[group.key for group in groups]}; end with ("**", ...)'
    )


def _masks(groups: list[_Group], params: Params) -> dict[str, Any]:
    owners = tree.map_selected(lambda *leaf: _group_of(groups, *leaf).key, params)
    return {
        group.key: jax.tree.map(lambda owner, key=group.key: owner == key, owners)
        for group in groups
    }


def _members(
    groups: list[_Group], updates: Updates, state: OptState, params: Params
) -> Iterator[tuple[_Group, tuple[Updates, OptState, Params]]]:
    masks = _masks(groups, params)
    for group in groups:
        mask = masks[group.key]
        kept = tree.keep(mask, updates), state[group.key], tree.keep(mask, params)
        yield group, kept
