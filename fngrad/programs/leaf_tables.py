"""Tables of the leaves of a tree, from their shapes alone."""

import math
from typing import Any, NamedTuple

import jax

import fngrad.programs.text_tables as text_tables
import fngrad.tree as tree
from fngrad.types import Path

MOST = 20  # lines of a short table


class Leaf(NamedTuple):
    """What is known of a leaf without its values."""

    path: Path
    shape: str
    dtype: str
    count: int  # numbers in it
    bytes: int


def leaves_of(a: Any) -> list[Leaf]:
    """Return the leaves of any tree: traced, deleted and abstract arrays too."""
    found, _ = jax.tree_util.tree_flatten_with_path(a)
    return [_leaf(tree.path_string(path), leaf) for path, leaf in found]


def amount(leaves: list[Leaf], what: str = "parameters") -> str:
    """Return how many numbers leaves hold and their bytes: ``8 parameters, 32 bytes``.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.programs.leaf_tables import amount, leaves_of
        >>> amount(leaves_of({"w": jnp.ones((3, 2)), "b": jnp.ones(1)}))
        '7 parameters, 28 bytes'
    """
    count, size = sum(x.count for x in leaves), sum(x.bytes for x in leaves)
    word = what.removesuffix("s") if count == 1 else what
    return f"{count:,} {word}, {size:,} bytes"


def table(
    leaves: list[Leaf],
    *,
    most: int | None = None,
    share: bool = False,
    total: bool = False,
) -> str:
    """Return one line per leaf: path, shape, dtype, how many numbers, bytes.

    Args:
        leaves: of a tree.
        most: lines; the last of them says how many leaves are left out. ``None``: all.
        share: whether to show each leaf's part of all numbers, in percent.
        total: whether a last line has the sums.
    """
    head = ["leaf", "shape", "dtype", "count", "bytes", *(["share"] if share else [])]
    whole = sum(leaf.count for leaf in leaves)
    kept = leaves if most is None or len(leaves) <= most else leaves[: most - 1]
    rows = [head, *(_row(leaf, whole, share) for leaf in kept)]
    if total:
        rows.append(["total", amount(leaves)])
    text = text_tables.table(rows, left=3)
    left_out = len(leaves) - len(kept)
    return text + (f"\n... and {left_out} more leaves" if left_out else "")


def percent(part: int, whole: int) -> str:
    """Return a share as ``12.3 %``, of nothing ``0.0 %``."""
    return f"{100 * part / whole if whole else 0:.1f} %"


def _row(leaf: Leaf, whole: int, share: bool) -> list[str]:
    numbers = [f"{leaf.count:,}", f"{leaf.bytes:,}"]
    more = [percent(leaf.count, whole)] if share else []
    return [leaf.path or "(root)", leaf.shape, leaf.dtype, *numbers, *more]


def _leaf(path: Path, leaf: Any) -> Leaf:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return Leaf(path, "", type(leaf).__name__, 1, 0)
    shape, dtype = tuple(leaf.shape), leaf.dtype
    count = math.prod(shape)
    return Leaf(path, str(shape), str(dtype), count, count * dtype.itemsize)
