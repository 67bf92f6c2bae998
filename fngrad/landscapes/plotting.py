"""Plots of landscapes and of paths on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.programs.optional_imports import import_extra, literal

POINTS = 200  # of a grid, along each axis
LEVELS = 24


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
        lower, upper: the corners of the region.
        minima, saddles: points to mark.
        title: above the plot; it and the labels may be mathtext.
        labels: of the two axes.
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
        library = import_extra("matplotlib.figure", "plot")
        figure = library.Figure((7, 4.5), layout="constrained")
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
    axis.set_title(title)
    axis.set_xlabel(labels[0])
    if low.size == 2:
        axis.set_ylabel(labels[1])
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
    handles = []
    for label, path in paths.items():
        values = heights(jnp.asarray(path))
        points = np.stack([np.asarray(path)[:, 0], np.asarray(values)], axis=1)
        (line,) = axis.plot(*points.T, ".-", ms=5, lw=1)
        handles.append((line, literal(label)))
        _mark_ends(axis, points, line.get_color())
    axis.set(ylabel="f", xlim=(low[0], high[0]))
    return handles


def _draw_contours(
    axis: Any, f: Any, paths: Any, low: Any, high: Any
) -> list[tuple[Any, str]]:
    """Draw the contours of a function and paths; return these and their labels."""
    x, y = (jnp.linspace(a, b, POINTS) for a, b in zip(low, high, strict=True))
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(f)))(grid))
    values = np.ma.masked_invalid(values)
    spread = values.max() - values.min()
    height = np.ma.log10(values - values.min() + 1e-3 * (spread or 1.0))
    filled = axis.contourf(x, y, height, LEVELS, cmap="Blues_r", alpha=0.8)
    axis.figure.colorbar(filled, ax=axis, label="log10 of the height, dark is low")
    axis.contour(x, y, height, LEVELS, colors="0.4", linewidths=0.3)
    colors = [f"C{i}" for i in (1, 3, 2, 4, 5, 6, 8, 9)]  # blue is the background
    handles = []
    for i, (label, path) in enumerate(paths.items()):
        points = np.asarray(path)
        color = colors[i % len(colors)]
        (line,) = axis.plot(*points.T, "-", lw=1.4, color=color, zorder=2)
        handles.append((line, literal(label)))
        _mark_ends(axis, points, color)
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return handles


def _mark_ends(axis: Any, points: np.ndarray, color: Any) -> None:
    axis.plot(*points[0], "s", ms=4, color=color, mec="black", zorder=3)
    axis.plot(*points[-1], "o", ms=6, color=color, mec="black", zorder=3)
