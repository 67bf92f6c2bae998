"""Plots of landscapes and of paths on them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.programs.optional_imports import import_extra, literal

POINTS = 200  # of a grid, along each axis
LEVELS = 24  # contours, at most


def plot(
    f: Callable[[jax.Array], jax.Array],
    paths: Mapping[str, Any] | None = None,
    *,
    lower: float | Sequence[float],
    upper: float | Sequence[float],
    minima: Sequence[Sequence[float]] = (),
    saddles: Sequence[Sequence[float]] = (),
    title: str = "",
    labels: tuple[str, str] = ("x", "y"),
    figure: Any = None,
) -> Any:
    """Draw a function of one or two coordinates, with paths on it.

    A path starts with a square and ends with a circle. With two coordinates the contour
    levels are evenly spaced in the logarithm of the height above the lowest grid point;
    values that are not finite are left blank.

    Args:
        f: a point of shape (1,) or (2,) -> a scalar.
        paths: label -> points, shape (points, dimension), as from `descend`; a label
            is drawn as it is written.
        lower, upper: the corners of the region, one number or one per coordinate.
        minima, saddles: points to mark.
        title: above the plot; it and the labels may be mathtext.
        labels: of the axes; a curve uses the first, and its height is labeled f.
        figure: a figure or subfigure to draw in; ``None`` makes one.

    Returns:
        A matplotlib figure, which notebooks show; ``savefig`` writes it.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: if the region does not have one or two coordinates, or is empty.
    """
    low, high = (np.atleast_1d(np.asarray(c, float)) for c in (lower, upper))
    if low.shape not in ((1,), (2,)) or low.shape != high.shape or np.any(low >= high):
        raise ValueError(
            f"need lower < upper with one or two coordinates, got {lower=} {upper=}"
        )
    if figure is None:
        figure = import_extra("matplotlib.figure", "plot").Figure(
            (7, 4.5),  # inches
            layout="constrained",
        )
    axis = figure.add_subplot()
    draw = _draw_curve if low.size == 1 else _draw_contours
    handles = draw(axis, f, paths or {}, low, high)
    marks = {"minimum": (minima, "*", "gold"), "saddle": (saddles, "X", "white")}
    for label, (points, marker, color) in marks.items():
        xy = np.array([_on_plot(f, np.asarray(point)) for point in points])
        if len(xy):
            marked = axis.scatter(
                *xy.T, marker=marker, s=110, c=color, ec="black", zorder=4
            )
            handles.append((marked, label))
    axis.set(title=title, xlabel=labels[0], ylabel=labels[1] if low.size == 2 else "f")
    if handles:
        axis.legend(*zip(*handles, strict=True), loc="upper left", fontsize="small")
    return figure


def _on_plot(f: Callable[[jax.Array], jax.Array], point: np.ndarray) -> np.ndarray:
    if point.size == 2:
        return point
    return np.array([point[0], float(jax.jit(f)(jnp.asarray(point, jnp.float32)))])


def _draw_curve(
    axis: Any, f: Any, paths: Any, low: Any, high: Any
) -> list[tuple[Any, str]]:
    """Draw a function of one coordinate and paths; return these and their labels."""
    heights = jax.jit(jax.vmap(f))
    x = jnp.linspace(low[0], high[0], 4 * POINTS)
    axis.plot(x, heights(x[:, None]), color="0.6", zorder=1)
    axis.set(xlim=(low[0], high[0]))
    points = {
        label: np.stack([np.asarray(path)[:, 0], heights(jnp.asarray(path))], axis=1)
        for label, path in paths.items()
    }
    return [_draw_path(axis, *path, ".-", ms=5, lw=1) for path in points.items()]


def _draw_contours(
    axis: Any, f: Any, paths: Any, low: Any, high: Any
) -> list[tuple[Any, str]]:
    """Draw the contours of a function and paths; return these and their labels."""
    x, y = (jnp.linspace(a, b, POINTS) for a, b in zip(low, high, strict=True))
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    values = np.ma.masked_invalid(jax.jit(jax.vmap(jax.vmap(f)))(grid))
    spread = values.max() - values.min()
    # A thousandth of the spread keeps the logarithm of the lowest point finite.
    height = np.ma.log10(values - values.min() + 1e-3 * (spread or 1.0))
    filled = axis.contourf(x, y, height, LEVELS, cmap="Blues_r", alpha=0.8)
    axis.figure.colorbar(filled, ax=axis, label="log10 of the height, dark is low")
    axis.contour(x, y, height, LEVELS, colors="0.4", linewidths=0.3)
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    # Without C0, the blue of the background.
    colors = itertools.cycle(f"C{i}" for i in (1, 3, 2, 4, 5, 6, 8, 9))
    return [
        _draw_path(axis, label, np.asarray(path), "-", lw=1.4, color=color, zorder=2)
        for (label, path), color in zip(paths.items(), colors, strict=False)
    ]


def _draw_path(
    axis: Any, label: str, points: np.ndarray, style: str, **options: Any
) -> tuple[Any, str]:
    """Draw a path from a square to a circle; return its line and its label."""
    (line,) = axis.plot(*points.T, style, **options)
    ends = {"color": line.get_color(), "mec": "black", "zorder": 3}
    axis.plot(*points[0], "s", ms=4, **ends)
    axis.plot(*points[-1], "o", ms=6, **ends)
    return line, literal(label)
