"""Learning curves, drawn without changing the user's matplotlib backend.

Names, which are keys here, are drawn literally and never as mathtext.
"""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fngrad.files.atomic_writes import write_atomically
from fngrad.logging.decimation import decimate
from fngrad.programs.optional_imports import import_extra, literal

__all__ = [
    "curves",
    "empty_figure",
    "figure",
    "png",
    "running_mean",
    "summarize",
    "wrapped",
    "write",
]


def __dir__() -> list[str]:
    return sorted(__all__)


Run: TypeAlias = tuple[Any, Any]  # steps and values, each of shape (points,)
Panel: TypeAlias = Mapping[str, Sequence[Run]]  # label -> one run per seed

MAX_LABELS = 40  # in a legend; so many curves differ in color or style
PANELS_IN_A_ROW = 4
LETTERS = 60  # that fit across a panel
_STYLES = ("-", "--", ":", "-.")  # after ten colors the next style begins
SMALLEST_ON_LOG_AXIS = 1e-250  # matplotlib's ticks underflow below
_LARGEST = 1e250  # and overflow above
_WIDTH, _HEIGHT = 4.8, 4.2  # of a panel, in inches


def curves(
    panels: Mapping[str, Panel],
    path: str | Path,
    *,
    x_label: str = "step",
    band: tuple[float, float] = (0.0, 1.0),
    log_scale: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Draw learning curves, one panel per quantity: the median and a band over seeds.

    Args:
        panels: quantity -> label -> runs, each of them ``(steps, values)``. The
            quantity labels the panel's axis, so it should give the unit:
            ``"validation loss (nats)"``. A label has the same color in all panels.
        path: the picture; its suffix (``.png``, ``.pdf``, ``.svg``) is its format.
        x_label: what the steps count; this and the title may be mathtext.
        band: the quantiles over seeds between which the band lies; by default it
            reaches from the least to the greatest value. A single run has no band.
        log_scale: the quantities to draw on a logarithmic axis.
        title: the text above all panels.

    Returns:
        The path.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: if there is nothing to draw, a run's steps and values differ in
            length, a step is not finite, the band is not an interval in [0, 1], or
            ``log_scale`` names a panel that does not exist.

    Runs of one label may be recorded at different steps: a run is interpolated between
    its own points, and left out where it has none or is not finite. Of long curves the
    extremes of every column of pixels are drawn. There are four panels per row, and at
    most 40 labels in the legend.
    """
    options = {"x_label": x_label, "band": band, "log_scale": log_scale, "title": title}
    return write(figure(panels, **options), path)


def figure(
    panels: Mapping[str, Panel],
    *,
    x_label: str = "step",
    band: tuple[float, float] = (0.0, 1.0),
    log_scale: Sequence[str] = (),
    title: str = "",
    colors: Mapping[str, str] | None = None,
    pale: Sequence[str] = (),
) -> Any:
    """Return the picture that `curves` saves, as a figure that notebooks display.

    Args:
        panels, x_label, band, log_scale, title: as for `curves`.
        colors: by label; ``None`` gives each label another one.
        pale: labels whose curves stay in the background.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: as for `curves`.
    """
    _check(panels, band, log_scale)
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    across = min(len(panels), PANELS_IN_A_ROW)
    rows = -(-len(panels) // across)
    legend = _Legend(labels, across)
    drawing = empty_figure(_WIDTH * across, _HEIGHT * rows + legend.height)
    handles: dict[str, Any] = {}
    for number, (quantity, panel) in enumerate(panels.items(), start=1):
        ax = drawing.add_subplot(rows, across, number)
        for label, runs in panel.items():
            summary = decimate(*summarize(runs, band))
            style = _style(labels.index(label))
            style |= {"color": colors[label]} if colors else {}
            style |= {"alpha": 0.35, "lw": 0.8} if label in pale else {}
            handles[label] = _draw(ax, summary, style)
        ax.set(xlabel=x_label, ylabel=wrapped(quantity, 40))
        ax.set_yscale("log" if quantity in log_scale else "linear")
        ax.grid(alpha=0.3)
    legend.draw(drawing, handles)
    if title:
        drawing.suptitle(title)
    return drawing


class _Legend:
    """The legend below the panels, of at most MAX_LABELS."""

    def __init__(self, labels: Sequence[str], across: int):
        self._labels = labels[:MAX_LABELS]
        self._left_out = len(labels) - len(self._labels)
        self._texts = [wrapped(label, LETTERS * across) for label in self._labels]
        longest = max(map(len, "\n".join(self._texts).split("\n")))
        room = LETTERS * across // (longest + 7)  # in columns
        self._columns = max(1, min(len(self._labels), 4 * across, room))
        lines = sum(1 + text.count("\n") for text in self._texts) / self._columns
        self.height = 0.2 * max(0, lines - 2)  # inches; a panel has room for two lines

    def draw(self, drawing: Any, handles: Mapping[str, Any]) -> None:
        shown = [handles[label] for label in self._labels]
        title = f"the first {len(shown)} of {len(shown) + self._left_out} names"
        drawing.legend(
            shown,
            self._texts,
            loc="outside lower center",
            ncols=self._columns,
            title=title if self._left_out else None,
        )


def wrapped(name: str, width: int) -> str:
    """Return a name in at most four lines, to be drawn literally.

    Args:
        name: any text.
        width: of a line, in letters.
    """
    options = {"replace_whitespace": False, "break_on_hyphens": False, "max_lines": 4}
    lines = textwrap.wrap(name, width, placeholder=" ...", **options)
    return "\n".join(literal(line) for line in lines)


def empty_figure(width: float, height: float) -> Any:
    """Return an empty figure that notebooks display, made without pyplot.

    Pyplot would choose a backend for the user.

    Args:
        width, height: in inches.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
    """
    figure_type = import_extra("matplotlib.figure", "plot").Figure
    backend = import_extra("matplotlib.backends.backend_agg", "plot")
    shown_type = type("Figure", (figure_type,), {"_repr_png_": png})
    shown = shown_type(figsize=(width, height), layout="constrained")
    backend.FigureCanvasAgg(shown)
    return shown


def summarize(
    runs: Sequence[Run], band: tuple[float, float] = (0.0, 1.0)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps of all runs, and the median and the band of their values.

    Args:
        runs: ``(steps, values)`` each; steps ascend.
        band: two quantiles in [0, 1].

    Returns:
        ``(steps, median, low, high)``, each of shape (points,), NaN where no run is
        finite.

    Example:
        >>> from fngrad.logging.plots import summarize
        >>> steps, median, low, high = summarize([([0, 2], [1.0, 3.0]), ([0], [2.0])])
        >>> print(steps, median, low, high)
        [0. 2.] [1.5 3. ] [1. 3.] [2. 3.]
    """
    arrays = [(np.asarray(s, float), np.asarray(v, float)) for s, v in runs]
    steps = arrays[0][0]
    if not _ascends(steps) or any(not np.array_equal(s, steps) for s, _ in arrays):
        steps = np.unique(np.concatenate([s for s, _ in arrays]))
        arrays = [(steps, _at(steps, *run)) for run in arrays]
    values = np.stack([values for _, values in arrays])
    finite = np.where(np.isfinite(values), values, np.nan)
    if len(finite) == 1:
        return steps, finite[0], finite[0], finite[0]
    ordered = np.sort(finite, axis=0)  # NaN is last
    last = np.maximum(np.isfinite(finite).sum(axis=0) - 1, 0)
    median, low, high = (_quantile(ordered, last, q) for q in (0.5, *band))
    return steps, median, low, high


def _ascends(steps: np.ndarray) -> bool:
    return bool(np.all(steps[1:] > steps[:-1]))


def _quantile(ordered: np.ndarray, last: np.ndarray, q: float) -> np.ndarray:
    """Return a quantile of each column's entries up to the ``last``, interpolated."""
    place = q * last
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, last)
    lower, upper = (
        np.take_along_axis(ordered, row[None], axis=0)[0] for row in (below, above)
    )
    return (1 - (place - below)) * lower + (place - below) * upper


def _at(steps: np.ndarray, own: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return values at ``steps``, NaN before the first and after the last own step."""
    if len(own) == 0:
        return np.full(len(steps), np.nan)
    return np.interp(steps, own, values, left=np.nan, right=np.nan)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and those before it, NaN where it is not finite.

    Args:
        values: (points,); what is not finite is left out of the means.
        window: how many values a mean is of, fewer at the beginning.

    Example:
        >>> import numpy as np
        >>> from fngrad.logging.plots import running_mean
        >>> print(running_mean(np.array([4.0, 2.0, np.nan, 6.0]), window=3))
        [ 4.  3. nan  4.]
    """
    values = np.asarray(values, float)
    finite = np.isfinite(values)
    sums = _running_sum(np.where(finite, values, 0.0), window)
    counts = _running_sum(finite.astype(float), window)
    return np.where(finite, sums / np.maximum(counts, 1), np.nan)


def _running_sum(values: np.ndarray, window: int) -> np.ndarray:
    """Return sums over windows, each of the end of a block and the start of the next.

    Differences of one cumulative sum would round all that follows a large value.
    """
    after = -len(values) % window
    blocks = np.pad(values, (window, after)).reshape(-1, window)
    starts = np.cumsum(blocks, axis=1).ravel()
    ends = np.cumsum(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
    last = window + np.arange(len(values))
    is_block = (last + 1) % window == 0
    return starts[last] + np.where(is_block, 0.0, ends[last - window + 1])


def _style(number: int) -> dict[str, Any]:
    dashes = _STYLES[number // 10 % len(_STYLES)]
    return {"color": f"C{number % 10}", "linestyle": dashes}


def _draw(ax: Any, summary: Any, style: dict[str, Any]) -> Any:
    """Draw the median and its band; return the line, for the legend."""
    steps, *values = summary
    median, low, high = (np.clip(x, -_LARGEST, _LARGEST) for x in values)
    finite = np.isfinite(median)
    # A point without a finite neighbor would be invisible as a line.
    marker = None if np.any(finite[1:] & finite[:-1]) else "o"
    (line,) = ax.plot(steps, median, marker=marker, **style)
    if np.any(low < high):
        ax.fill_between(steps, low, high, color=style["color"], alpha=0.2, lw=0)
    return line


def write(drawing: Any, path: str | Path, dpi: int = 150) -> Path:
    """Write a figure to a file, in one atomic step.

    Args:
        drawing: a figure of matplotlib.
        path: the picture; its suffix (``.png``, ``.pdf``, ``.svg``) is its format, and
            its folder is made.
        dpi: pixels per inch.

    Returns:
        The path.

    Raises:
        OSError: if the folder cannot be written; the old picture remains.
        ValueError: if the format is unknown, or a text is mathtext that cannot be
            parsed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _drawn(drawing, path.suffix.lstrip(".") or "png", dpi))
    return path


def png(drawing: Any) -> bytes:
    """Return a figure of matplotlib as a PNG, as notebooks show it."""
    return _drawn(drawing, "png", 150)


def _drawn(drawing: Any, file_format: str, dpi: float) -> bytes:
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about letters that the font lacks
        drawing.savefig(picture, format=file_format, dpi=dpi)
    return picture.getvalue()


def _check(
    panels: Mapping[str, Panel], band: tuple[float, float], log_scale: Sequence[str]
) -> None:
    if not 0 <= band[0] <= band[1] <= 1:
        raise ValueError(f"need 0 <= band[0] <= band[1] <= 1, got {band=}")
    if not any(runs for panel in panels.values() for runs in panel.values()):
        raise ValueError(f"need at least one run to draw, got {panels!r}")
    for name in log_scale:
        if name not in panels:
            raise ValueError(f"need log_scale to name panels, got {name!r}")
    for quantity, panel in panels.items():
        for label, runs in panel.items():
            _check_runs(runs, f"{quantity!r}, {label!r}")


def _check_runs(runs: Sequence[Run], where: str) -> None:
    if not runs:
        raise ValueError(f"need at least one run, got none for {where}")
    for steps, values in runs:
        if np.ndim(steps) != 1 or np.shape(steps) != np.shape(values):
            raise ValueError(
                "need steps and values of one shape (points,), "
                f"got {np.shape(steps)} and {np.shape(values)} for {where}"
            )
        if not np.all(np.isfinite(np.asarray(steps, float))):
            raise ValueError(f"need finite steps, got {steps} for {where}")
