"""Pictures of sweeps: curves, heat maps, sensitivities, parallel coordinates.

Each returns a matplotlib figure, which notebooks show; ``savefig`` writes it. Color-
blind readers can distinguish all colors except those of the curves, which are
matplotlib's. An axis is logarithmic if its values are positive and span more than a
factor of 30. Points that diverged, or that are too far away for the scale, are hatched,
hollow or crossed, never omitted. Names are drawn as they are written; a ``label`` may
be mathtext.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import fngrad.logging.plots as plots
import fngrad.sweeps.results.plot_elements as plot_elements
from fngrad.metrics.directions import Metric
from fngrad.programs.optional_imports import literal
from fngrad.sweeps.results.plot_elements import COLORS
from fngrad.sweeps.results.result import SweepResult
from fngrad.sweeps.results.statistics import Summary
from fngrad.sweeps.results.tables import describe_point, records, summary

__all__ = [
    "heat_map",
    "loss_curves",
    "parallel_coordinates",
    "rate_curve",
    "sensitivity",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def loss_curves(
    result: SweepResult,
    names: Sequence[str] = (),
    *,
    by: str | None = None,
    top: int = 5,
    metric: Metric | None = None,
    labels: Mapping[str, str] | None = None,
    band: tuple[float, float] = (0.25, 0.75),
    means: Mapping[str, int] | None = None,
) -> Any:
    """Draw curves of the best points: the median over seeds, with a quantile band.

    Args:
        result: from `fngrad.sweep`.
        names: in the history, one panel each; none means the metric.
        by: a column, such as ``"optimizer"``: draw the best point of each of its
            values, in the colors of `sensitivity`; ``None`` draws the best of all.
        top: how many points to draw, at most.
        metric: ranks the points; ``None`` means the sweep's.
        labels: name -> the label of its axis, with the unit.
        band: two quantiles over seeds.
        means: name -> of how many records to draw the running mean.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: if ``by`` is not a column, a name is not a curve, or as `summary`.
    """
    found = summary(result, metric)
    chosen = _best_of_each(result, found, by) if by else list(found.order)
    names, labels = names or (found.metric[0],), labels or {}
    total = np.ones(len(found.median), int)
    for name, x in result.history.items():
        total = np.maximum(total, records(result, name)) if x.ndim > 2 else total
    panels, means = {}, means or {}
    for name in names:
        curves = result.history.get(name)
        if curves is None or curves.ndim not in (2, 3):
            raise ValueError(
                f"need curves among {sorted(result.history)}, got {name!r}"
            )
        own = records(result, name) if curves.ndim == 3 else np.ones(len(total), int)
        curves = np.asarray(curves, float).reshape(*curves.shape[:2], -1)
        window = means.get(name, 1)
        shown = labels.get(name, name)
        shown += f", mean of {window} records" if window > 1 else ""
        panels[shown] = {
            describe_point(result, number): [
                (
                    _spaced(own[number], total[number]),
                    _smooth(curve[: own[number]], window),
                )
                for curve in curves[number]
            ]
            for number in chosen[:top]
        }
    log_scale = [name for name, panel in panels.items() if _panel_needs_log_axis(panel)]
    colors = None
    if by:
        own_colors = _colors_of(_column(result, by))
        colors = {describe_point(result, n): own_colors[n] for n in chosen}
    return plots.figure(panels, band=band, log_scale=log_scale, colors=colors)


def heat_map(
    result: SweepResult,
    x: str,
    y: str,
    *,
    metric: Metric | None = None,
    label: str | None = None,
) -> Any:
    """Draw the median over seeds against two hyperparameters.

    If several points share both values, the best of them is shown. Values that form a
    grid are drawn as cells, others as dots. Cells where half the lanes diverged are
    hatched, such dots are hollow; the best point has a frame or a ring.

    Args:
        result: from `fngrad.sweep`.
        x, y: columns of the points.
        metric: a name in the history and "min" or "max", or a name that implies one
            (see `fngrad.metrics.directions`); ``None`` means the sweep's.
        label: of the colors, with the unit; ``None`` is the metric's name.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: if a column does not exist or holds vectors, or as `summary`.
    """
    found = summary(result, metric)
    columns = [_column(result, name) for name in (x, y)]
    across, up = (len(np.unique(column.astype(str))) for column in columns)
    is_grid = across * up <= 2 * len(found.median)
    width = np.clip(2.4 + 0.6 * across, 6.4, 14) if is_grid else 6.4
    figure = plots.empty_figure(width, 4.8)
    axis = figure.add_subplot()
    draw = plot_elements.draw_cells if is_grid else plot_elements.draw_dots
    colors = draw(axis, columns, found)
    bar = figure.colorbar(colors, ax=axis)
    bar.set_label(_median_of(found, label))
    axis.set(xlabel=literal(x), ylabel=literal(y))
    return figure


def sensitivity(
    result: SweepResult,
    name: str,
    *,
    by: str | None = None,
    metric: Metric | None = None,
    label: str | None = None,
) -> Any:
    """Draw the metric against one hyperparameter.

    A line joins the best points at each value, with the intervals of their medians,
    clipped to the scale; dots are the medians of all points. A cross at the edge is a
    value at which half the lanes of every point diverged, or every point is off the
    scale.

    Args:
        result: from `fngrad.sweep`.
        name: a column of the points.
        by: a second column, such as ``"optimizer"``: draw a line for each of its
            values.
        metric: a name in the history and "min" or "max", or a name that implies one
            (see `fngrad.metrics.directions`); ``None`` means the sweep's.
        label: of the vertical axis, with the unit; ``None`` is the metric's name.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: if a column does not exist or holds vectors, or as `summary`.
    """
    found = summary(result, metric)
    column = _column(result, name)
    values, _ = plot_elements.positions(column)
    groups = _column(result, by) if by else np.zeros(len(values))
    figure = plots.empty_figure(6.4, 4.4)
    axis = figure.add_subplot()
    medians = plot_elements.readable(found)
    handles: dict[str, Any] = {}
    colors = _colors_of(groups)
    for group in dict.fromkeys(groups.tolist()):
        own = np.flatnonzero(groups == group)
        color = colors[own[0]]
        axis.scatter(values[own], medians[own], s=9, color=color, alpha=0.35)
        best = _best_at_each(values, found, own)
        title = literal(str(group) if by else f"best at each {name}")
        handles[title] = _draw_best(
            axis, found, best, values=values[best], medians=medians[best], color=color
        )
    plot_elements.finish_axis(axis, "x", column, name)
    if plot_elements.needs_log_axis(medians):
        axis.set_yscale("log")
    axis.set_ylabel(_median_of(found, label))
    axis.grid(alpha=0.3)
    if np.isnan(medians).any():
        (cross,) = axis.plot([], [], "x", color="0.4")
        handles = {"diverged or off the scale": cross, **handles}
    shown = list(handles)[: plots.MAX_LABELS]
    lines = [handles[label] for label in shown]
    figure.legend(lines, shown, loc="outside lower center", ncols=4)
    return figure


def parallel_coordinates(
    result: SweepResult, *, metric: Metric | None = None, label: str | None = None
) -> Any:
    """Draw every point as a line through an axis for each hyperparameter.

    The last axis is the median over seeds, with the best on top. Darker lines rank
    better; half the lanes of dashed gray ones diverged.

    Args:
        result: from `fngrad.sweep`.
        metric: a name in the history and "min" or "max", or a name that implies one
            (see `fngrad.metrics.directions`); ``None`` means the sweep's.
        label: of the last axis, with the unit; ``None`` is the metric's name.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: if a column holds vectors, or as `summary`.
    """
    found = summary(result, metric)
    medians = plot_elements.readable(found)
    columns = [*(_column(result, name) for name in result.points), medians]
    names = [*map(literal, result.points), label or literal(found.metric[0])]
    figure = plots.empty_figure(2 + 1.7 * len(columns), 4.6)
    axis = figure.add_subplot()
    heights = []
    for place, column in enumerate(columns):
        is_metric = place == len(columns) - 1
        heights.append(
            plot_elements.height_of(column, is_metric and found.metric[1] == "min")
        )
        plot_elements.draw_scale(axis, place, column, heights[-1])
        axis.axvline(place, color="0.6", lw=0.8, zorder=0)
    plot_elements.draw_ranked(axis, np.stack(heights, axis=1), found.order, medians)
    axis.set_xticks(range(len(columns)), names)
    axis.set_yticks([])
    axis.set(xlim=(-0.3, len(columns) - 0.5), ylim=(-0.06, 1.06))
    for side in ("top", "bottom", "left", "right"):
        axis.spines[side].set_visible(False)
    return figure


def rate_curve(
    rates: np.ndarray,
    losses: np.ndarray,
    diverges: np.ndarray,
    *,
    first_loss: float,
    marks: Mapping[str, float],
    label: str,
) -> Any:
    """Draw a learning rate range test, see `fngrad.sweeps.RangeTest`.

    Args:
        rates: (N,).
        losses: (N, S), infinite where a lane diverged.
        diverges: bool, (N,).
        first_loss: before training; losses far above it are clipped.
        marks: name -> a rate to mark; NaN is ignored.
        label: of the vertical axis.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
    """
    figure = plots.empty_figure(6.4, 4.2)
    axis = figure.add_subplot()
    ordered = np.sort(losses, axis=1)
    middle, low, high = np.median(losses, axis=1), ordered[:, 0], ordered[:, -1]
    least = np.min(low[np.isfinite(low)])
    top = first_loss + 0.25 * (first_loss - least)
    good = ~diverges
    shown = [np.minimum(values, top) for values in (middle, low, high)]
    axis.fill_between(rates, *shown[1:], where=good, color=COLORS[0], alpha=0.2, lw=0)
    seeds = losses.shape[1]
    axis.plot(rates[good], shown[0][good], color=COLORS[0], label=f"{seeds} seeds")
    axis.plot(
        rates[diverges], shown[0][diverges], "x", color=COLORS[3], label="diverges"
    )
    axis.axhline(first_loss, color="0.5", lw=0.8, ls=":", label="before training")
    for (name, rate), style in zip(marks.items(), ("-", "--", ":"), strict=False):
        if np.isfinite(rate):
            words = f"{name}: {rate:.2g}"
            axis.axvline(rate, color="0.2", lw=1.2, ls=style, label=words)
    axis.set(xscale="log", xlabel="learning rate", ylabel=label)
    if least > 0 and first_loss > plot_elements.LOGARITHMIC_FROM * least:
        axis.set_yscale("log")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _column(result: SweepResult, name: str) -> np.ndarray:
    if name not in result.points:
        raise ValueError(f"need a column among {list(result.points)}, got {name!r}")
    column = np.asarray(result.points[name])
    if column.ndim > 1:
        raise ValueError(
            f"need a column of one value per point, got shape {column.shape[1:]} of "
            f"{name!r}"
        )
    return column


def _smooth(curve: np.ndarray, window: int) -> np.ndarray:
    return plots.running_mean(curve, window) if window > 1 else curve


def _colors_of(groups: np.ndarray) -> list[str]:
    """Return the color of each point: one for each value of a column."""
    values = list(dict.fromkeys(groups.tolist()))
    return [COLORS[values.index(x) % len(COLORS)] for x in groups.tolist()]


def _best_of_each(result: SweepResult, found: Summary, by: str) -> list[int]:
    column = _column(result, by).astype(str)
    best: dict[str, int] = {}
    for number in found.order:
        best.setdefault(str(column[number]), int(number))
    return list(best.values())


def _best_at_each(values: np.ndarray, found: Summary, own: np.ndarray) -> np.ndarray:
    """Return the best of some points at each of their values, sorted by value."""
    ranked = found.order[np.isin(found.order, own)]
    _, first = np.unique(values[ranked], return_index=True)
    return ranked[first]


def _median_of(found: Summary, label: str | None) -> str:
    return f"{label or literal(found.metric[0])}, median of {found.seeds} seeds"


def _draw_best(
    axis: Any,
    found: Summary,
    best: np.ndarray,
    *,
    values: np.ndarray,
    medians: np.ndarray,
    color: str,
) -> Any:
    """Join medians with their intervals; draw those off the scale as crosses."""
    readable = plot_elements.readable(found)
    worst = (np.nanmax if found.metric[1] == "min" else np.nanmin)(readable)
    within = np.minimum if found.metric[1] == "min" else np.maximum
    limits = within(np.stack([found.low[best], found.high[best]]), worst)
    is_shown = np.isfinite(medians)
    middle = medians[is_shown]
    ends = np.maximum([[-1], [1]] * (limits[:, is_shown] - middle), 0)
    style = {"marker": "o", "ms": 4, "capsize": 2, "color": color}
    drawn = axis.errorbar(values[is_shown], middle, ends, **style)
    lost = values[~is_shown]
    axis.plot(lost, np.full(len(lost), worst), "x", color=color, mew=1.5)
    return drawn


def _spaced(count: int, total: int) -> np.ndarray:
    """Return the steps of evenly spaced records: 1, 2, ... if every step has one."""
    return np.minimum(np.arange(1, count + 1) * -(-total // max(count, 1)), total)


def _panel_needs_log_axis(panel: Mapping[str, Sequence[Any]]) -> bool:
    return plot_elements.needs_log_axis(
        np.concatenate([v for runs in panel.values() for _, v in runs])
    )
