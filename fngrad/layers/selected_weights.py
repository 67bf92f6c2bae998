"""Which weights of a layer a wrapper takes."""

from typing import Any

import numpy as np

import fngrad.tree as tree
from fngrad.types import Params, Path, Selector


def selected_weights(params: Params, select: Selector) -> set[Path]:
    """Return the paths of the selected leaves.

    Raises:
        ValueError: if there are none.
    """
    is_selected = tree.selector_predicate(select)
    leaves = tree.leaf_paths(params)
    chosen = {path for path, leaf in leaves.items() if is_selected(path, leaf)}
    if not chosen:
        raise ValueError(
            f"need select to select a weight, got {select!r}, which selects none of "
            f"{list(leaves)}"
        )
    return chosen


def check_matrix(path: Path, leaf: Any) -> None:
    """Raise unless a selected leaf has inputs and outputs.

    Raises:
        ValueError: if it has fewer than two axes.
    """
    if np.ndim(leaf) < 2:
        raise ValueError(
            "need selected weights of shape (..., inputs, outputs), got shape "
            f"{np.shape(leaf)} at {path!r}"
        )
