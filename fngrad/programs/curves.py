"""Small curves as SVG, for notebooks."""

import html

import numpy as np

_WIDTH, _HEIGHT, _MARGIN = 320, 90, 4  # pixels
_MOST = 160  # points of a curve; of more, each shown point is the mean of a window


def svg(name: str, steps: np.ndarray, values: np.ndarray) -> str:
    """Return a curve as an SVG element; the empty string if fewer than two are finite.

    Args:
        name: the title.
        steps: shape (n,), rising.
        values: real numbers, shape (n,); what is not finite is left out. If all are
            positive and their range is more than tenfold, the axis is logarithmic.
    """
    values = np.asarray(values, np.float64)
    kept = np.isfinite(values)
    x, y = np.asarray(steps, np.float64)[kept], values[kept]
    if len(y) < 2:
        return ""
    is_logarithmic = bool(np.min(y) > 0 and np.min(y) < np.max(y) / 10)
    across = _means(_scaled(x, _MARGIN, _WIDTH - _MARGIN))
    heights = np.log(y) if is_logarithmic else y
    points = zip(
        across, _means(_scaled(heights, _HEIGHT - _MARGIN, _MARGIN)), strict=True
    )
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    text = f"{name}: {values[kept][0]:.4g} to {values[kept][-1]:.4g}"
    title = html.escape(text + (" (logarithmic)" if is_logarithmic else ""))
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img"><title>{title}</title>'
        f'<polyline points="{line}" fill="none" stroke="#4c72b0" stroke-width="1.5"/>'
        f"</svg><div><small>{title}</small></div>"
    )


def _means(values: np.ndarray) -> np.ndarray:
    """Return the means of at most `_MOST` windows of nearly equal length."""
    parts = np.array_split(values, min(len(values), _MOST))
    return np.array([np.mean(part) for part in parts])


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map values to [low, high]; equal ones to the middle."""
    halves = values / 2 - np.min(values) / 2  # differences of halves do not overflow
    span = np.max(halves)
    if span == 0:
        return np.full(len(values), (low + high) / 2)
    return low + halves / span * (high - low)
