"""Layers that one tree has stacked and another one by one, and how to convert them.

At a *node* of n equal layers, `fngrad.layers.repeat` has a leaf ``node/weight`` with a
leading axis of size n, and `fngrad.layers.serial` has ``node/layers/0/weight`` to
``node/layers/<n-1>/weight``.
"""

import itertools
from collections import defaultdict
from typing import NamedTuple, TypeAlias

from fngrad.types import Path

Outline: TypeAlias = tuple[str, tuple[int, ...]]  # dtype, shape


class Layouts(NamedTuple):
    """The nodes whose layers are saved in one layout and wanted in the other."""

    to_stack: dict[Path, set[Path]]  # saved one by one: the leaves of both, by node
    to_unstack: dict[Path, set[Path]]  # saved stacked
    kept: set[Path]  # the paths that are in both

    @property
    def explained(self) -> set[Path]:
        """The paths, saved or wanted, that differ by the layout only."""
        return set().union(*self.to_stack.values(), *self.to_unstack.values())

    def recipe(self, part: Path, *, is_abstract: bool) -> str:
        """Return in words how to restore what is wanted; empty if no layout differs.

        Args:
            part: the path below which globs select.
            is_abstract: whether what is wanted has ShapeDtypeStructs.
        """
        one_by_one, stacked = "one by one", "stacked, as of scan=True and layers.repeat"
        cases = [
            (self.to_stack, one_by_one, stacked, "unstack_layers", "stack_layers"),
            (self.to_unstack, stacked, one_by_one, "stack_layers", "unstack_layers"),
        ]
        text = ""
        for nodes, saved, wanted, before, after in cases:
            if not nodes:
                continue
            others = self.kept | (self.explained - set().union(*nodes.values()))
            at = _selector([_below(node, part) for node in nodes], others)
            like = f"fngrad.layers.{before}(like, {at})"
            if is_abstract:
                like = f"jax.eval_shape(lambda like: {like}, like)"
            text += (
                f"Layers at {at} are saved {saved}, and wanted {wanted}: restore with "
                f"like={like}, then convert what is restored by "
                f"fngrad.layers.{after}(restored, {at}). "
            )
        return text


def compare(saved: dict[Path, Outline], wanted: dict[Path, Outline]) -> Layouts:
    """Return the nodes of equal layers that two trees have in different layouts.

    Example:
        >>> from fngrad.checkpoint.layer_layouts import compare
        >>> saved = {f"a/layers/{i}/w": ("float32", (3,)) for i in range(2)}
        >>> layouts = compare(saved, {"a/w": ("float32", (2, 3))})
        >>> list(layouts.to_stack), list(layouts.to_unstack)
        (['a'], [])
    """
    to_stack, to_unstack = _stackable(saved, wanted), _stackable(wanted, saved)
    return Layouts(to_stack, to_unstack, saved.keys() & wanted.keys())


def _stackable(
    one_by_one: dict[Path, Outline], stacked: dict[Path, Outline]
) -> dict[Path, set[Path]]:
    """Return the nodes that one tree has one by one and the other stacked."""
    nodes: dict[Path, dict[str, dict[Path, Outline]]] = defaultdict(dict)
    for path in one_by_one.keys() - stacked.keys():
        names = path.split("/")
        for i, (name, index) in enumerate(itertools.pairwise(names)):
            if name == "layers" and index.isdigit():
                layers = nodes["/".join(names[:i])]
                rest = "/".join(names[i + 2 :])
                layers.setdefault(index, {})[rest] = one_by_one[path]
    found = {}
    for node, layers in nodes.items():
        expected = _stack(node, layers)
        is_there = expected is not None and expected.items() <= stacked.items()
        if expected and is_there and len(expected) == len(_under(node, stacked)):
            found[node] = {*expected, *_under(node, one_by_one)}
    return dict(sorted(found.items()))


def _stack(
    node: Path, layers: dict[str, dict[Path, Outline]]
) -> dict[Path, Outline] | None:
    """Return the leaves of layers once they are stacked; None if they are unequal."""
    first, count = layers.get("0"), len(layers)
    is_whole = layers.keys() == {str(i) for i in range(count)}
    if first is None or not is_whole or any(x != first for x in layers.values()):
        return None
    return {
        f"{node}/{rest}".removesuffix("/"): (dtype, (count, *shape))
        for rest, (dtype, shape) in first.items()
    }


def _under(node: Path, leaves: dict[Path, Outline]) -> dict[Path, Outline]:
    return {p: x for p, x in leaves.items() if p == node or p.startswith(f"{node}/")}


def _selector(nodes: list[Path], others: set[Path]) -> str:
    """Return, as code, what selects nodes and no others: a glob, or their paths."""
    ends: list[str] = []
    for names in zip(*(reversed(node.split("/")) for node in nodes), strict=False):
        if len({*names}) > 1:
            break
        ends.insert(0, names[0])
    if nodes == [""]:
        return '"**"'
    tail = "/".join(ends)
    if not ends or any(f"/{tail}/" in f"/{path}/" for path in others):
        return "[" + ", ".join(f'"{node}"' for node in nodes) + "]"
    return f'"**/{tail}"'


def _below(path: Path, part: Path) -> Path:
    return path.removeprefix(part).removeprefix("/")
