"""Values that jump far above a running median."""

import numpy as np


def spikes(values: np.ndarray, new: int, window: int, factor: float) -> np.ndarray:
    r"""Return which of the newest values are spikes.

    With $m$ the median of the ``window`` values before $v_t$ and $s$ the median of
    their distances from $m$, $v_t$ is a spike if

    $$v_t > m + \max(\texttt{factor} \cdot s, |m|)$$

    so it must also be at least twice the median of positive values. Of a normal
    distribution $s = 0.67 \sigma$. An infinity is a spike. NaN is not, and is left out
    of the medians. Without a full window before it no value is.

    Args:
        values: of consecutive steps, shape (n,).
        new: how many of the last to examine.
        window: how many values before each, >= 1.
        factor: the least distance from the median, in units of $s$.

    Returns:
        Bools of shape (min(new, n),).

    Example:
        >>> import numpy as np
        >>> from fngrad.fitting.spikes import spikes
        >>> spikes(np.array([1.0, 1.1, 0.9, 1.0, 5.0, 1.0]), 3, window=3, factor=10.0)
        array([False,  True, False])
    """
    first = max(len(values) - new, window)
    found = np.zeros(min(new, len(values)), bool)
    if first >= len(values):
        return found
    late = np.asarray(values[first:], np.float64)
    before = np.asarray(values[first - window : -1], np.float64)
    rows = np.lib.stride_tricks.sliding_window_view(before, window)
    median = _medians(rows)
    spread = _medians(np.abs(rows - median[:, None]))
    found[-len(late) :] = late > median + np.maximum(factor * spread, np.abs(median))
    return found


def _medians(rows: np.ndarray) -> np.ndarray:
    """Return the median of each row without what is not finite; NaN if nothing is."""
    is_known = np.isfinite(rows)
    if is_known.all():
        return np.median(rows, axis=1)
    pairs = zip(rows, is_known, strict=True)
    return np.array([np.median(x[k]) if k.any() else np.nan for x, k in pairs])
