"""Curves drawn with letters, for a terminal or a log file."""

from collections.abc import Mapping

import numpy as np

MARKS = "*o+x#@%&abcdefghijklmnpqrstuvwyz"


def draw(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    width: int = 72,
    height: int = 16,
) -> str:
    """Return curves over one pair of axes, with a legend; empty if none is finite.

    If all values are positive and their range is more than tenfold, the vertical axis
    is logarithmic. Where curves cross, the mark of the first is shown.

    Args:
        curves: label -> (steps, values), each of shape (points,); what is not finite
            is left out.
        width, height: of the area inside the axes, in letters.

    Example:
        >>> import numpy as np
        >>> from fngrad.programs.text_curves import draw
        >>> steps = np.arange(5)
        >>> print(draw({"loss": (steps, 4.0 - steps)}, width=9, height=3))
        4 |***
          |   ***
        0 |      ***
           0       4
        * loss
    """
    finite = {name: _finite(*curve) for name, curve in curves.items()}
    finite = {name: curve for name, curve in finite.items() if len(curve[0])}
    if not finite:
        return ""
    x = np.concatenate([steps for steps, _ in finite.values()])
    y = np.concatenate([values for _, values in finite.values()])
    is_logarithmic = bool(np.min(y) > 0 and np.min(y) < np.max(y) / 10)
    grid = np.full((height, width), " ")
    marks = {n: MARKS[i % len(MARKS)] for i, n in enumerate(finite)}
    for name in reversed(finite):
        columns, rows = _cells(finite[name], (x, y), grid.shape, is_logarithmic)
        grid[rows, columns] = marks[name]
    return _framed(grid, (x, y), marks, is_logarithmic)


def _finite(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    kept = np.isfinite(values)
    return np.asarray(steps, np.float64)[kept], values[kept]


def _cells(
    curve: tuple[np.ndarray, np.ndarray],
    ranges: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, int],
    is_logarithmic: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns and rows of a curve: one row for each column it passes."""
    height, width = shape
    steps, values = curve
    columns = _share(steps, ranges[0]) * (width - 1)
    axis = np.log if is_logarithmic else np.asarray
    rows = (1 - _share(axis(values), axis(ranges[1]))) * (height - 1)
    first, last = int(np.round(columns[0])), int(np.round(columns[-1]))
    across = np.arange(first, last + 1)
    return across, np.round(np.interp(across, columns, rows)).astype(int)


def _share(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Map values to [0, 1], where the others begin and end; equal ones to 0.5."""
    low = np.min(of / 2)
    span = np.max(of / 2) - low  # differences of halves do not overflow
    return (values / 2 - low) / span if span else np.full(len(values), 0.5)


def _framed(
    grid: np.ndarray,
    ranges: tuple[np.ndarray, np.ndarray],
    marks: Mapping[str, str],
    is_logarithmic: bool,
) -> str:
    x, y = ranges
    labels = [""] * len(grid)
    labels[-1], labels[0] = f"{np.min(y):.4g}", f"{np.max(y):.4g}"
    wide = max(map(len, labels))
    lines = [
        f"{label:>{wide}} |{''.join(row)}".rstrip()
        for label, row in zip(labels, grid, strict=True)
    ]
    begin, end = f"{np.min(x):g}", f"{np.max(x):g}"
    gap = max(len(grid[0]) - len(begin) - len(end), 1)
    lines.append(f"{'':>{wide}}  {begin}{' ' * gap}{end}")
    lines += [f"{mark} {name}" for name, mark in marks.items()]
    lines += ["(logarithmic)"] if is_logarithmic else []
    return "\n".join(lines)
