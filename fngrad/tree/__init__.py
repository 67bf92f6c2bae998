"""Pytrees as vectors, and the dtypes, paths, selections and stacks of their leaves."""

from typing import TYPE_CHECKING

from fngrad.tree.dtypes import (
    cast_like,
    cast_real,
    check_floats,
    check_real,
    copied,
    is_float,
    is_key,
    is_real,
    strong,
    wide_copy,
    wide_dtype,
    wide_zeros_like,
    widen,
    zeros,
)
from fngrad.tree.entries import allclose, max, min, random_like, size
from fngrad.tree.paths import (
    from_leaf_paths,
    get,
    leaf_paths,
    map_with_path,
    mismatch,
    path_string,
    set,
)
from fngrad.tree.selection import (
    by_layer,
    check_mask,
    floats,
    globs_of,
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
    "allclose",
    "average",
    "by_layer",
    "cast_like",
    "cast_real",
    "check_floats",
    "check_mask",
    "check_real",
    "copied",
    "difference",
    "floats",
    "from_leaf_paths",
    "get",
    "globs_of",
    "is_float",
    "is_key",
    "is_real",
    "keep",
    "leaf_paths",
    "lerp",
    "map_leaves",
    "map_selected",
    "map_with_path",
    "max",
    "merge",
    "min",
    "mismatch",
    "norm",
    "path_string",
    "random_like",
    "scale",
    "select",
    "selected",
    "selector_predicate",
    "set",
    "size",
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
    "zeros",
    "zeros_like",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
