"""Pytrees as vectors, and the paths and selections of their leaves.

A tree of arrays is a vector (`vectors`), whose leaves have dtypes, paths and may be
selected or stacked.
"""

from fngrad.tree.dtypes import (
    cast_like,
    check_real,
    strong,
    wide_copy,
    wide_dtype,
    wide_zeros_like,
    widen,
)
from fngrad.tree.paths import (
    from_leaf_paths,
    leaf_paths,
    map_with_path,
    mismatch,
    path_string,
)
from fngrad.tree.selection import (
    check_mask,
    keep,
    merge,
    select,
    selected,
    selector_predicate,
    split,
)
from fngrad.tree.stacks import (
    Stacked,
    map_leaves,
    map_selected,
)
from fngrad.tree.vectors import (
    abs_square,
    add,
    average,
    difference,
    lerp,
    norm,
    scale,
    stays_finite,
    sub,
    vdot,
    where,
    zeros_like,
)

__all__ = [
    "Stacked",
    "abs_square",
    "add",
    "average",
    "cast_like",
    "check_mask",
    "check_real",
    "difference",
    "from_leaf_paths",
    "keep",
    "leaf_paths",
    "lerp",
    "map_leaves",
    "map_selected",
    "map_with_path",
    "merge",
    "mismatch",
    "norm",
    "path_string",
    "scale",
    "select",
    "selected",
    "selector_predicate",
    "split",
    "stays_finite",
    "strong",
    "sub",
    "vdot",
    "where",
    "wide_copy",
    "wide_dtype",
    "wide_zeros_like",
    "widen",
    "zeros_like",
]
