"""Learning curves as a picture, drawn without touching the user's backend."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fngrad.extras import import_extra
from fngrad.logging.files import write_atomically

Run: TypeAlias = tuple[Any, Any]  # steps and values, each of shape (points,)
Panel: TypeAlias = Mapping[str, Sequence[Run]]  # label -> one run a seed

_STYLES = ("-", "--", ":", "-.")  # after ten colours the next style begins


def curves(
    panels: Mapping[str, Panel],
    path: str | Path,
    *,
    x_label: str = "step",
    band: tuple[float, float] = (0.0, 1.0),
    log_scale: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Draw learning curves, a panel a quantity: the median and a band over seeds.

    Args:
        panels: quantity -> label -> runs, a run being ``(steps, values)``. The
            quantity labels the panel's axis, so it should give the unit:
            ``"validation loss (nats)"``. A label has one colour in all panels.
        path: the picture; its suffix (``.png``, ``.pdf``, ``.svg``) is its format.
        x_label: what the steps count.
        band: the quantiles over seeds between which the band lies; the default is
            from the least to the largest value. One run has no band.
        log_scale: the quantities drawn on a logarithmic axis.
        title: stands above all panels.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: there is nothing to draw, a run's steps and values differ in
            length, the band is no interval in [0, 1], or ``log_scale`` names no
            panel.

    Runs of one label may record at different steps: a run is interpolated between
    its own points, and left out where it has none or is not finite.
    """
    options = {"x_label": x_label, "band": band, "log_scale": log_scale, "title": title}
    return _save(figure(panels, **options), Path(path))


def figure(
    panels: Mapping[str, Panel],
    *,
    x_label: str = "step",
    band: tuple[float, float] = (0.0, 1.0),
    log_scale: Sequence[str] = (),
    title: str = "",
) -> Any:
    """Return the picture that `curves` saves, as a figure that notebooks show.

    Args:
        panels, x_label, band, log_scale, title: as for `curves`.

    Raises:
        ImportError: matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: as for `curves`.
    """
    _check(panels, band, log_scale)
    figure = empty_figure(4.8 * len(panels), 4.2)
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    handles: dict[str, Any] = {}
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (quantity, panel) in zip(axes, panels.items(), strict=True):
        for label, runs in panel.items():
            summary = summarize(runs, band)
            handles[label] = _draw(ax, summary, labels.index(label))
        ax.set(xlabel=x_label, ylabel=quantity)
        ax.set_yscale("log" if quantity in log_scale else "linear")
        ax.grid(alpha=0.3)
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=_columns(labels, len(panels)),
    )
    if title:
        figure.suptitle(title)
    return figure


def _columns(labels: Sequence[str], num_panels: int) -> int:
    """Return how many labels fit side by side under some panels."""
    fitting = 60 * num_panels // (max(map(len, labels)) + 7)
    return max(1, min(len(labels), 4 * num_panels, fitting))


def empty_figure(width: float, height: float) -> Any:
    """Return a figure that notebooks show, made without pyplot.

    Pyplot would choose a backend for the user.

    Args:
        width, height: in inches.

    Raises:
        ImportError: matplotlib is missing (``pip install "fngrad[plot]"``).
    """
    figure_type = import_extra("matplotlib.figure", "plot").Figure
    backend = import_extra("matplotlib.backends.backend_agg", "plot")
    shown_type = type("Figure", (figure_type,), {"_repr_png_": _png})
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
    steps = np.unique(np.concatenate([s for s, _ in arrays]))
    values = np.stack([_at(steps, *run) for run in arrays])
    seen = np.isfinite(values).any(axis=0)
    summary = np.full((3, len(steps)), np.nan)
    finite = np.where(np.isfinite(values), values, np.nan)[:, seen]
    summary[:, seen] = np.nanquantile(finite, (0.5, *band), axis=0)
    median, low, high = summary
    return steps, median, low, high


def _at(steps: np.ndarray, own: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return values at ``steps``, NaN before the first and after the last own step."""
    if len(own) == 0:
        return np.full(len(steps), np.nan)
    return np.interp(steps, own, values, left=np.nan, right=np.nan)


def _draw(ax: Any, summary: Any, number: int) -> Any:
    """Draw the median and its band; return the line, for the legend."""
    steps, median, low, high = summary
    style = _STYLES[number // 10 % len(_STYLES)]
    # A single point has no line to show.
    marker = "o" if len(steps) == 1 else None
    (line,) = ax.plot(steps, median, style, color=f"C{number % 10}", marker=marker)
    if np.any(low < high):
        ax.fill_between(steps, low, high, color=f"C{number % 10}", alpha=0.2, lw=0)
    return line


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _bytes(figure, path.suffix.lstrip(".") or "png"))
    return path


def _png(figure: Any) -> bytes:
    return _bytes(figure, "png")


def _bytes(figure: Any, file_format: str) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format=file_format, dpi=150)
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
