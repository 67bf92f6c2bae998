"""Elements of a sweep's figures: scales, axes, cells, dots, lines."""

from typing import Any

import numpy as np

from fngrad.programs.optional_imports import import_extra, literal
from fngrad.sweeps.results.statistics import Summary

# Okabe and Ito's colors, without the yellow, which is too pale on white.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
LOGARITHMIC_FROM = 30.0
MAX_CELLS_WITH_TEXT = 20  # in a row or a column
MAX_TICKS = 12


def readable(found: Summary) -> np.ndarray:
    """Return the medians, NaN where half the lanes diverged or off the scale.

    One value of 1e20 would give all others one color. The scale extends from the best
    median to four times the distance of the middle one, and at least twice that of the
    upper quartile; distances are logarithmic if the medians need a logarithmic axis.

    Args:
        found: the summary of a sweep.
    """
    finite = np.where(np.isfinite(found.median), found.median, np.nan)
    scaled = np.log(finite) if needs_log_axis(finite) else finite
    away = np.abs(scaled - scaled[found.best])
    middle, upper = np.nanquantile(away, [0.5, 0.75])
    end = max(4 * middle, 2 * upper)
    return np.where((away <= end) | (end == 0), finite, np.nan)


def needs_log_axis(values: np.ndarray) -> bool:
    """Return whether values need a logarithmic axis: positive, over a wide range.

    Args:
        values: of any shape; those that are not finite are ignored.
    """
    finite = values[np.isfinite(values)]
    is_positive = finite.size > 0 and finite.min() > 0
    return bool(is_positive and finite.max() > LOGARITHMIC_FROM * finite.min())


def positions(column: np.ndarray) -> tuple[np.ndarray, list[str] | None]:
    """Return numbers as they are; other values as indices, and their names.

    Args:
        column: values of any kind, shape (points,).
    """
    if column.dtype.kind in "iuf":
        return column.astype(float), None
    texts = [str(value) for value in column]
    names = list(dict.fromkeys(texts))
    return np.array([names.index(text) for text in texts], float), names


def finish_axis(axis: Any, direction: str, column: np.ndarray, label: str) -> None:
    """Set the label of an axis, and its scale or the names of its values.

    Args:
        axis: matplotlib's axes.
        direction: "x" or "y".
        column: values of any kind, shape (points,), drawn at their `positions`.
        label: of the axis, drawn as it is written.
    """
    values, names = positions(column)
    options: dict[str, Any] = {"label": literal(label)}
    if names:
        options["ticks"] = range(len(names))
        options["ticklabels"] = [literal(name) for name in names]
    elif needs_log_axis(values):
        options["scale"] = "log"
    axis.set(**{f"{direction}{option}": value for option, value in options.items()})


def draw_cells(axis: Any, columns: list[np.ndarray], found: Summary) -> Any:
    """Draw the medians as evenly spaced cells, each with the best of its points.

    Args:
        axis: where to draw.
        columns: horizontal and vertical values, each of shape (points,).
        found: the summary of the sweep.

    Returns:
        The image, for its color bar.
    """
    readable_medians = readable(found)
    (across, x), (up, y) = (_kinds(column) for column in columns)
    cells = (y * len(across) + x)[found.order]
    cells, first = np.unique(cells, return_index=True)
    best = found.order[first]
    medians = np.full((len(up), len(across)), np.nan)
    medians.flat[cells] = readable_medians[best]
    shown = np.ma.masked_invalid(medians)
    image = axis.imshow(
        shown, cmap=_color_map(found), norm=_norm(shown), origin="lower", aspect="auto"
    )
    axis.patch.set(facecolor="0.92", hatch="///", edgecolor="0.6")
    if max(medians.shape) <= MAX_CELLS_WITH_TEXT:
        for row, column in np.argwhere(np.isfinite(medians)):
            _write(axis, image, column, row, float(medians[row, column]))
    patch = import_extra("matplotlib.patches", "plot").Rectangle
    corner = (x[found.best] - 0.5, y[found.best] - 0.5)
    axis.add_patch(patch(corner, 1, 1, fill=False, ec=COLORS[3], lw=3))
    setters = (axis.set_xticks, axis.set_yticks)
    for kinds, set_ticks in zip((across, up), setters, strict=True):
        step = -(-len(kinds) // MAX_CELLS_WITH_TEXT)
        texts = [_tick(value) for value in kinds[::step]]
        set_ticks(range(0, len(kinds), step), texts, fontsize=8)
    return image


def draw_dots(axis: Any, columns: list[np.ndarray], found: Summary) -> Any:
    """Draw points as dots colored by their medians; see `draw_cells`."""
    (x, _), (y, _) = (positions(column) for column in columns)
    medians = readable(found)
    finite = np.isfinite(medians)
    medians = medians[finite]
    dots = axis.scatter(
        x[finite],
        y[finite],
        c=medians,
        cmap=_color_map(found),
        norm=_norm(medians),
        s=60,
    )
    axis.scatter(x[~finite], y[~finite], s=60, facecolors="none", edgecolors="0.4")
    ring = {"facecolors": "none", "edgecolors": COLORS[3], "linewidths": 2.5}
    axis.scatter(x[found.best], y[found.best], s=190, **ring)
    for direction, column in zip("xy", columns, strict=True):
        finish_axis(axis, direction, column, "")
    return dots


def _kinds(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values of a column, and the index of each point's value."""
    if column.dtype.kind != "O":
        return np.unique(column, return_inverse=True)
    values = column.tolist()
    distinct = list(dict.fromkeys(values))
    kinds = np.empty(len(distinct), object)
    kinds[:] = distinct
    return kinds, np.array([distinct.index(value) for value in values])


def _color_map(found: Summary) -> str:
    """Return the color map in which better is darker."""
    return "viridis" if found.metric[1] == "min" else "viridis_r"


def _norm(values: Any) -> str | None:
    return "log" if needs_log_axis(np.ma.compressed(values)) else None


def _write(axis: Any, image: Any, x: float, y: float, value: float) -> None:
    red, green, blue, _ = image.cmap(image.norm(value))
    is_dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
    color = "white" if is_dark else "black"
    axis.text(x, y, f"{value:.3g}", ha="center", va="center", color=color, fontsize=7)


def _tick(value: Any) -> str:
    is_float = isinstance(value, float | np.floating)
    return f"{value:.2g}" if is_float else literal(str(value))


def height_of(column: np.ndarray, is_flipped: bool = False) -> np.ndarray:
    """Return values as heights in [0, 1], and below 0 where they are not finite.

    At most `MAX_TICKS` distinct values are evenly spaced.

    Args:
        column: shape (points,).
        is_flipped: whether the least value is on top.
    """
    values, _ = positions(column)
    finite = np.isfinite(values)
    distinct = np.unique(values[finite])
    if len(distinct) <= MAX_TICKS:
        scaled = np.searchsorted(distinct, values).astype(float)
    else:
        scaled = (
            np.log(np.where(finite, values, 1)) if needs_log_axis(values) else values
        )
    low, high = scaled[finite].min(), scaled[finite].max()
    height = (scaled - low) / (high - low) if high > low else np.full(len(values), 0.5)
    height = 1 - height if is_flipped else height
    return np.where(finite, height, -0.05)


def draw_scale(axis: Any, place: int, column: np.ndarray, heights: np.ndarray) -> None:
    """Write values beside an axis of parallel coordinates, as far as they fit.

    Args:
        axis: where to draw.
        place: the horizontal position.
        column: shape (points,).
        heights: of the values, from `height_of`.
    """
    last = -np.inf
    for i in np.argsort(heights):
        if heights[i] < 0 or heights[i] - last < 1 / (2 * MAX_TICKS):
            continue
        last = heights[i]
        axis.annotate(
            _tick(column[i]),
            (place, heights[i]),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )


def draw_ranked(
    axis: Any, lines: np.ndarray, order: np.ndarray, medians: np.ndarray
) -> None:
    """Draw points as lines through parallel coordinates, the best on top and widest.

    Args:
        axis: where to draw.
        lines: a height on each axis, shape (points, axes).
        order: the points by rank, the best first.
        medians: shape (points,); lines are dashed where these are not finite.
    """
    count, places = lines.shape
    rank = np.arange(count)[::-1]
    ordered = order[::-1]
    lost = ~np.isfinite(medians[ordered])
    colors = import_extra("matplotlib.cm", "plot").viridis_r(
        1 - rank / max(count - 1, 1)
    )
    colors[lost] = (0.7, 0.7, 0.7, 1.0)
    colors[:, 3] = np.where(rank < count / 5, 0.9, 0.5)
    across = np.broadcast_to(np.arange(places), lines.shape)
    collection = import_extra("matplotlib.collections", "plot").LineCollection
    axis.add_collection(
        collection(
            np.stack([across, lines[ordered]], axis=-1),
            colors=colors,
            linestyles=np.where(lost, "--", "-").tolist(),
            linewidths=np.where(rank == 0, 2.5, 1.0),
        )
    )
