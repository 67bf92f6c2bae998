"""Histograms of arrays, counted on the host."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
from fngrad.sharding.placement import fetched

BINS = 64


class Histogram(NamedTuple):
    """How many entries of an array lie between which edges."""

    counts: np.ndarray  # int64, shape (bins,)
    edges: np.ndarray  # float64, shape (bins + 1,), which do not decrease
    mean: float  # of the finite entries; 0 without any
    rms: float  # the root of the mean square of the finite entries
    nonfinite: int  # how many entries are NaN or infinite, in no bin
    low: float  # the least finite entry; 0 without any
    high: float  # the greatest


def histogram(x: Any, bins: int = BINS) -> Histogram:
    r"""Count the entries of an array in bins of equal width.

    $$c_i = \sum_j [e_i \le x_j \lt e_{i+1}], \quad
      e_i = \min x + \tfrac{i}{n} (\max x - \min x)$$

    The last bin includes its right edge. The array is copied to the host and counted in
    float64, which takes about 40 ns per entry. An array with one value has bins from
    0.5 below to 0.5 above it.

    Args:
        x: real numbers, of any shape: an array, or lists of numbers.
        bins: how many bins, >= 1.

    Returns:
        The histogram. Entries that are not finite are counted apart.

    Raises:
        TypeError: if ``x`` has no real numbers.
        ValueError: if ``bins`` is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> found = fg.logging.histogram(jnp.array([0.0, 1.0, 1.0, 4.0]), bins=4)
        >>> print(found.counts, found.edges)
        [1 2 0 1] [0. 1. 2. 3. 4.]
    """
    bins = numerics.check_count("bins", bins, 1)
    array = _as_array(x)
    dtype = array.dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"need real numbers for a histogram, got {dtype}")
    values = fetched(array) if isinstance(array, jax.Array) else array
    entries = np.asarray(values).astype(np.float64).ravel()
    finite = entries[np.isfinite(entries)]
    scale = np.max(np.abs(finite), initial=0.0) or 1.0
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    first, last = (low, high) if low < high else (low - 0.5, high + 0.5)
    share = np.arange(bins + 1) / bins
    between = first * (1 - share) + last * share  # last - first might overflow
    edges = np.sort(np.clip(between, first, last))
    counts, _ = np.histogram(finite, edges)
    parts = finite / scale  # whose squares do not overflow
    size = max(finite.size, 1)
    return Histogram(
        counts,
        edges,
        mean=float(parts.sum() / size * scale),
        rms=float(np.sqrt(parts @ parts / size) * scale),
        nonfinite=entries.size - finite.size,
        low=float(low),
        high=float(high),
    )


def _as_array(x: Any) -> Any:
    """Return numbers, or lists of them, as an array.

    Raises:
        TypeError: if they have none.
    """
    if hasattr(x, "dtype"):
        return x
    try:
        return np.asarray(x)
    except ValueError as error:  # lists of different lengths
        raise TypeError(f"need real numbers for a histogram, got {error}") from None


def histogram_of(name: str, value: Any) -> Histogram:
    """Return a histogram: the value itself, or that of the array that it is.

    Raises:
        TypeError: if it is neither; its name is given.
    """
    if isinstance(value, Histogram):
        return value
    try:
        return histogram(value)
    except TypeError as error:
        raise TypeError(f"{error} at {name!r}") from None
