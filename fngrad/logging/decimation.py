"""Reduces long curves to the points that a picture can show.

A picture has some hundred columns of pixels. Of all points in one column only the
extremes are visible, and the first and last, which connect it to its neighbors.
"""

import numpy as np

COLUMNS = 1000  # a panel has fewer pixels across


def decimate(steps: np.ndarray, *curves: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the points of curves that a picture shows; a spike of one point is kept.

    In each of `COLUMNS` intervals of equal length the first and the last point are
    kept, and of every curve the least, the greatest and the first that is NaN, which
    is drawn as a gap. Short curves are returned unchanged.

    Args:
        steps: finite and ascending, shape (points,).
        curves: values at these steps, each of shape (points,).

    Returns:
        ``(steps, *curves)``, each of shape (kept,).

    Example:
        >>> import numpy as np
        >>> from fngrad.logging.decimation import decimate
        >>> values = np.zeros(1_000_000)
        >>> values[345_678] = 9.0
        >>> steps, kept = decimate(np.arange(1_000_000.0), values)
        >>> len(kept) < 5_000, float(steps[kept.argmax()])
        (True, 345678.0)
    """
    if len(steps) <= 4 * COLUMNS:
        return steps, *curves
    share = (steps - steps[0]) / (steps[-1] - steps[0])
    column = np.minimum((share * COLUMNS).astype(int), COLUMNS - 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    kept = [starts, np.append(starts[1:], len(steps)) - 1]
    counts = np.diff(np.append(starts, len(steps)))
    for curve in {id(curve): curve for curve in curves}.values():
        for extreme in (np.fmin, np.fmax):
            end = np.repeat(extreme.reduceat(curve, starts), counts)
            kept.append(_first_of_each(column, curve == end))
        kept.append(_first_of_each(column, np.isnan(curve)))
    points = np.unique(np.concatenate(kept))
    return steps[points], *(curve[points] for curve in curves)


def _first_of_each(column: np.ndarray, is_selected: np.ndarray) -> np.ndarray:
    """Return the first selected point of each column that has one."""
    points = np.flatnonzero(is_selected)
    return points[np.diff(column[points], prepend=-1) > 0]
