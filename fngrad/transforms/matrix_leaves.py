"""Leaves that a rule of matrices leaves out, or takes for matrices, by mistake.

The parameters of stacked layers have an axis more than those of one layer: a stack of
biases looks like a matrix, and a stack of matrices does not.
"""

import functools

import fngrad.programs.caller_warnings as caller_warnings
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.types import OptState, Params, Path, Selector

Shapes = dict[Path, tuple[int, ...]]
_VECTORS = ("bias", "scale")  # how layers call them


def warning_of_stacks(groups: Transform, matrices: Selector) -> Transform:
    """Return Muon's groups, with a warning at ``init`` about leaves that may be stacks.

    It warns, once per transform, if no leaf is a matrix though one has three axes or
    more, or if matrices have the shape of stacked vectors: (layers, n) beside a leaf of
    shape (layers, n, m) or (layers, m, n) in the same node. One alone may be a matrix
    beside another array, unless it is called bias or scale.

    Args:
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
        message = _of_no_matrix(*chosen.values()) or _of_vectors(
            {path: x for path, x in chosen[True].items() if path in arrays},
            chosen[False],
        )
        if message:
            tell(message)
        return state

    return chain(part._replace(init=init))


def _of_no_matrix(matrices: Shapes, rest: Shapes) -> str:
    """Return the warning if no leaf is a matrix, or nothing."""
    long = [path for path, shape in rest.items() if len(shape) > 2]
    if matrices or not long:
        return ""
    path, shape = long[0], rest[long[0]]
    glob = f"**/{path.rpartition('/')[2]}" if "/" in path else path
    kernels = f'for kernels, matrices="{glob}" takes all axes but the last as one'
    ways_out = [_way_out(path, rest), kernels]
    return (
        "muon found no matrix among its leaves and trains all of them with AdamW, "
        f"also {path!r} of shape {shape}; "
        f"{'; '.join(ways_out if len(shape) == 3 else reversed(ways_out))}"
    )


def _of_vectors(matrices: Shapes, rest: Shapes) -> str:
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
                f"muon takes {path!r} of shape {shape} for a matrix; beside {other!r} "
                f"of shape {rest[other]}, which AdamW trains, it looks like {shape[0]} "
                f"stacked vectors; {_way_out(path, matrices | rest)}"
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


def _way_out(path: Path, leaves: Shapes) -> str:
    return (
        "for stacked layers, as of fngrad.layers.repeat or scan=True, use "
        f'fngrad.layerwise(fngrad.muon(...), "{_stack_of(path, leaves)}")'
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
