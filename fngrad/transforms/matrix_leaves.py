"""Leaves that a rule of matrices leaves out, or takes for matrices, by mistake.

The parameters of stacked layers have an axis more than those of one layer: a stack of
biases looks like a matrix, and a stack of matrices does not.
"""

import functools
from typing import Any

import fngrad.programs.caller_warnings as caller_warnings
import fngrad.tree as tree
from fngrad.transforms.core import Transform, TransformLike, chain
from fngrad.transforms.masking import masked
from fngrad.types import OptState, Params, Path, Selector

Shapes = dict[Path, tuple[int, ...]]
_VECTORS = ("bias", "scale")  # how layers call them


def with_rest(
    name: str, rule: Transform, rest: TransformLike, matrices: Selector | None
) -> Transform:
    """Return a rule for matrices and another for the other leaves, as one optimizer.

    Args:
        name: how a warning calls it, see `warning_of_stacks`.
        rule: updates matrices.
        rest: updates the other leaves.
        matrices: which leaves are matrices; ``None`` means those of two axes.
    """
    is_matrix = _has_two_axes if matrices is None else matrices
    return warning_of_stacks(name, masked(rule, is_matrix, otherwise=rest), is_matrix)


def mask_of_group(mask: Selector | None) -> Selector | None:
    """Return a mask that fits one group: a tree of all leaves becomes a predicate."""
    if mask is None or tree.globs_of(mask):
        return mask
    return tree.selector_predicate(mask)


def check_axes(part: str, params: Params) -> None:
    """Raise unless every leaf has two axes or more.

    Raises:
        ValueError: if one has fewer, with its path and the name of the part.
    """
    for path, leaf in tree.leaf_paths(params).items():
        if leaf.ndim < 2:
            raise ValueError(
                f"need leaves of two axes or more for {part}, "
                f"got shape {leaf.shape} at {path!r}"
            )


def warning_of_stacks(name: str, groups: Transform, matrices: Selector) -> Transform:
    """Return the groups, with a warning at ``init`` about leaves that may be stacks.

    It warns, once per transform, if no leaf is a matrix though one has three axes or
    more, or if matrices have the shape of stacked vectors: (layers, n) beside a leaf of
    shape (layers, n, m) or (layers, m, n) in the same node. One alone may be a matrix
    beside another array, unless it is called bias or scale.

    Args:
        name: of the optimizer.
        groups: a chain of one part.
        matrices: which leaves it orthogonalizes.
    """
    (part,) = groups.parts
    selects = tree.selector_predicate(matrices)
    tell = functools.lru_cache(maxsize=8)(caller_warnings.warn)

    def init(params: Params) -> OptState:
        state = part.init(params)
        chosen: dict[bool, Shapes] = {True: {}, False: {}}
        tree.map_selected(
            lambda path, x: chosen[selects(path, x)].update({path: x.shape}), params
        )
        # What `layerwise` or `stack_leaves` holds has another path as a leaf.
        arrays = tree.leaf_paths(params).keys()
        message = _of_no_matrix(name, *chosen.values()) or _of_vectors(
            name,
            {path: x for path, x in chosen[True].items() if path in arrays},
            chosen[False],
        )
        if message:
            tell(message)
        return state

    return chain(part._replace(init=init))


def _of_no_matrix(name: str, matrices: Shapes, rest: Shapes) -> str:
    """Return the warning if no leaf is a matrix, or nothing."""
    long = [path for path, shape in rest.items() if len(shape) > 2]
    if matrices or not long:
        return ""
    path, shape = long[0], rest[long[0]]
    glob = f"**/{path.rpartition('/')[2]}" if "/" in path else path
    kernels = f'for kernels, matrices="{glob}" takes all axes but the last as one'
    ways_out = [_way_out(name, path, rest), kernels]
    return (
        f"{name} found no matrix among its leaves and trains all of them with AdamW, "
        f"also {path!r} of shape {shape}; "
        f"{'; '.join(ways_out if len(shape) == 3 else reversed(ways_out))}"
    )


def _of_vectors(name: str, matrices: Shapes, rest: Shapes) -> str:
    """Return the warning about the first matrix that looks like vectors, or nothing."""
    by_node: dict[Path, list[Path]] = {}
    for path in rest:
        by_node.setdefault(_node_of(path), []).append(path)
    found = [
        (path, other)
        for path, shape in matrices.items()
        for other in by_node.get(_node_of(path), [])
        if _are_stacked(shape, rest[other])
    ]
    layers = [matrices[path][0] for path in dict(found)]
    for path, other in found:
        shape = matrices[path]
        if layers.count(shape[0]) > 1 or path.rpartition("/")[2] in _VECTORS:
            return (
                f"{name} takes {path!r} of shape {shape} for a matrix; beside "
                f"{other!r} of shape {rest[other]}, which AdamW trains, it looks like "
                f"{shape[0]} stacked vectors; {_way_out(name, path, matrices | rest)}"
            )
    return ""


def _are_stacked(vectors: tuple[int, ...], matrices: tuple[int, ...]) -> bool:
    """Return whether two shapes look like those of the vectors and matrices of layers.

    Where both axes of the first are equal, it may be one matrix beside some.
    """
    if len(vectors) != 2 or len(matrices) != 3 or vectors[0] == vectors[1]:
        return False
    return vectors[0] == matrices[0] and vectors[1] in matrices[1:]


def _node_of(path: Path) -> Path:
    return path.rpartition("/")[0]


def _way_out(name: str, path: Path, leaves: Shapes) -> str:
    return (
        "for stacked layers, as of fngrad.layers.repeat or scan=True, use "
        f'fngrad.layerwise(fngrad.{name}(...), "{_stack_of(path, leaves)}")'
    )


def _stack_of(path: Path, leaves: Shapes) -> str:
    """Return the glob of the widest node around a leaf whose leaves have its layers."""
    glob, (*nodes, _) = path, path.split("/")
    above = ["/".join([*nodes[:end], "**"]) for end in range(len(nodes), 0, -1)]
    for wider in above or ["**"]:
        is_inside = tree.selector_predicate(wider)
        inside = [shape for p, shape in leaves.items() if is_inside(p, None)]
        if any(shape[:1] != leaves[path][:1] for shape in inside):
            break
        glob = wider
    return glob


def _has_two_axes(path: Path, leaf: Any) -> bool:
    return leaf.ndim == 2
