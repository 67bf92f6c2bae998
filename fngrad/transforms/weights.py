"""What rules that treat the leaves of a mask otherwise have in common.

A *mask* selects leaves as `fngrad.tree.select` does; ``None`` selects all.
"""

from typing import Any

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.types import Params, Scalar, Selector, Updates


def selected(mask: Selector | None, params: Params) -> Any:
    """Return the tree of bools that says which leaves a mask selects."""
    return tree.select("**" if mask is None else mask, params)


def check_mask(mask: Selector | None, params: Params) -> None:
    """Raise unless a mask fits the parameters, and a glob selects a leaf.

    Raises:
        TypeError: no selector.
        ValueError: a glob that selects none, or a tree of bools that does not fit.
    """
    is_any = any(jax.tree.leaves(selected(mask, params)))
    if isinstance(mask, str) and not is_any:
        raise ValueError(
            f"need a mask that selects a leaf, got {mask!r} for the leaves "
            f"{list(tree.leaf_paths(params))}"
        )


def add_weights(
    updates: Updates, params: Params, factor: Scalar, mask: Selector | None
) -> Updates:
    """Return updates + factor * params where the mask selects, else updates."""

    def add(decays: bool, u: jax.Array, w: jax.Array) -> jax.Array:
        return u + numerics.scaled(factor, w.astype(u.dtype)) if decays else u

    return jax.tree.map(add, selected(mask, params), updates, params)
