"""Arrays from outside: of NumPy, of JAX, and columns of other libraries.

Inputs whose conversion to an array of numbers would lose something, such as a mask or
the missing entries of a column, are refused, with the leaf's path.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree

_NO_NUMBERS = "OSUTmM"  # kinds of dtypes: objects, strings, durations, dates


def check_one_part(arrays: Any) -> None:
    """Raise for all parts of a data set at once.

    Raises:
        TypeError: if the arrays are train, validation and test.
    """
    if all(hasattr(arrays, part) for part in ("train", "validation", "test")):
        raise TypeError(
            f"need the arrays of one part, got {type(arrays).__name__}: splits.train"
        )


def array(path: str, x: Any) -> Any:
    """Return a leaf of numbers or bools as an array of NumPy or of JAX.

    Args:
        path: of the leaf, for the message.
        x: an array, a column of another library that NumPy can read, or nested
            numbers; in either byte order. JAX arrays are returned unchanged.

    Raises:
        TypeError: if it contains neither numbers nor bools, such as categories,
            objects or dates, or is a nullable column with missing entries.
        ValueError: if it is a masked array, or has integers that do not fit in the
            dtype that JAX uses for them (int32, without x64).

    Example:
        >>> import numpy as np
        >>> from fngrad.numerics.array_inputs import array
        >>> array("x", np.array([1, 2], ">i2")).dtype.isnative
        True
    """
    if not isinstance(x, jax.Array):
        x = _of_numpy(path, x)
        x = x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    is_number = jnp.issubdtype(x.dtype, np.number)
    if not is_number and x.dtype != np.bool_:
        raise TypeError(f"need numbers or bools, got {x.dtype} at {path!r}")
    _check_integers(path, x)
    return x


def of_another_library(path: str, x: Any) -> Any:
    """Return an array of another library, such as torch, as one of NumPy or of JAX.

    Other leaves are returned unchanged: arrays of NumPy and JAX, numbers.

    Raises:
        TypeError: as `array`.
        ValueError: as `array`.
    """
    is_known = isinstance(x, jax.Array | np.ndarray | np.generic | numbers.Number)
    return x if is_known else array(path, x)


def check_no_lists(what: str, a: Any) -> None:
    """Raise for a list of numbers inside a tree, each of which would be a leaf.

    A list that has arrays in it, or is the tree itself, is a part of its structure.

    Args:
        what: where the tree comes from, for the message.
        a: the tree.

    Raises:
        TypeError: if there is one; it is named by its path.

    Example:
        >>> import numpy as np
        >>> from fngrad.numerics.array_inputs import check_no_lists
        >>> check_no_lists("read", {"x": [np.zeros(2), np.ones(3)]})
    """

    def is_refused(x: Any) -> bool:
        leaves = jax.tree.leaves(x) if isinstance(x, list) and x is not a else []
        return bool(leaves) and all(map(_is_plain_number, leaves))

    found = jax.tree_util.tree_leaves_with_path(a, is_leaf=is_refused)
    for path, x in found:
        if is_refused(x):
            raise TypeError(
                f"need arrays from {what}, got a list at {tree.path_string(path)!r}: "
                "np.asarray(x) makes an array of it; a dataset of Hugging Face gives "
                'arrays in the format "numpy", theirs.with_format("numpy")'
            )


def unmasked(path: str, x: Any) -> np.ndarray:
    """Return a leaf as a NumPy array of any dtype.

    Raises:
        ValueError: if it is a masked array.
    """
    numerics.check_unmasked(f"an array at {path!r}", x)
    return np.asarray(x)


def _is_plain_number(x: Any) -> bool:
    return isinstance(x, numbers.Number) and not hasattr(x, "dtype")


def _of_numpy(path: str, x: Any) -> np.ndarray:
    dtype = getattr(x, "dtype", None)
    refused = f"need numbers or bools, got {dtype} at {path!r}"
    if dtype is not None and hasattr(x, "cat"):
        raise TypeError(
            f"{refused}: .cat.codes numbers the categories, -1 where one is missing"
        )
    is_nullable = hasattr(x, "isna") and not isinstance(dtype, np.dtype | None)
    if is_nullable and np.any(x.isna()):
        raise TypeError(
            f"{refused} with missing entries: .fillna(value) replaces them by a value, "
            '.to_numpy("float32", na_value=np.nan) by NaN'
        )
    made = unmasked(path, x)
    if made.dtype.kind in _NO_NUMBERS:
        raise TypeError(
            f"need numbers or bools, got {dtype or made.dtype} at {path!r}: "
            f"{_remedy(made)}"
        )
    return made


def _remedy(made: np.ndarray) -> str:
    if made.dtype.kind in "mM":
        return "(x - origin) / np.timedelta64(1, unit) converts times to numbers"
    if made.ndim > 1:
        return "pass a dict of its columns, each of numbers"
    if all(item is None or isinstance(item, int | float) for item in made.tolist()):
        return ".astype(np.float32) converts it to floats"
    return "np.unique(x, return_inverse=True)[1] numbers its values"


def _check_integers(path: str, x: Any) -> None:
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if dtype == x.dtype or not jnp.issubdtype(dtype, jnp.integer) or not x.size:
        return
    low, high = x.min(), x.max()
    if low < jnp.iinfo(dtype).min or high > jnp.iinfo(dtype).max:
        raise ValueError(
            f"need integers that fit in {dtype.name}, got values from {low} to "
            f"{high} at {path!r}"
        )
