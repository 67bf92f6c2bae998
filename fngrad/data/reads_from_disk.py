"""Arrays on disk that are read as a whole: whatever does so warns here."""

import mmap
from typing import Any, TypeVar

import jax
import numpy as np

import fngrad.tree as tree
from fngrad.programs.caller_warnings import warn
from fngrad.types import Path

Tree = TypeVar("Tree")


def in_memory(arrays: Tree) -> Tree:
    """Return a tree whose arrays on disk are NumPy arrays, with a warning for each.

    On disk are memory maps, and datasets of an HDF5 file or a Zarr store. Other leaves
    stay as they are. A memory map keeps its memory, which whatever uses it reads.

    Example:
        >>> import numpy as np
        >>> from fngrad.data.reads_from_disk import in_memory
        >>> in_memory({"x": np.arange(3)})
        {'x': array([0, 1, 2])}
    """
    return tree.map_with_path(_in_memory, arrays)


def _in_memory(path: Path, x: Any) -> Any:
    is_map = _is_map(x)
    if not is_map and not _is_stored(x):
        return x
    kind = "memory map" if is_map else f"{type(x).__name__} on disk"
    warn(
        f"the {kind} at {path!r}, {x.nbytes} bytes, is copied into memory as a whole; "
        "fngrad.data.from_source reads it batch by batch, and np.asarray of it is "
        "copied without this warning"
    )
    return np.asarray(x)


def _is_map(x: Any) -> bool:
    """Return whether an array's memory is a file; NumPy keeps the class in copies."""
    if not isinstance(x, np.memmap):
        return False
    while isinstance(x, np.ndarray):
        x = x.base
    return isinstance(x, mmap.mmap)


def _is_stored(x: Any) -> bool:
    """Return whether an array has the file of h5py or the store of Zarr."""
    if isinstance(x, np.ndarray | jax.Array) or hasattr(x, "iloc"):  # of pandas
        return False
    is_array = hasattr(x, "dtype") and hasattr(x, "nbytes")
    return is_array and (hasattr(x, "file") or hasattr(x, "store"))
