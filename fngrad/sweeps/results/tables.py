"""Tables of a sweep's points, ranked, and comparisons of two points."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.numerics as numerics
import fngrad.programs.text_tables as text_tables
import fngrad.sweeps.results.statistics as statistics
from fngrad.metrics.directions import Directed, Metric, directed, unknown_metric
from fngrad.programs.printed import preformatted, shown
from fngrad.programs.text_tables import short_text
from fngrad.sweeps.results.result import SweepResult, last_values
from fngrad.sweeps.results.statistics import Comparison, Summary

Choice = int | Mapping[str, Any]  # a point's number, or values of some columns


class Table(NamedTuple):
    """Points of a sweep, ranked; as text a table, its legend and the warnings."""

    summary: Summary
    rows: list[dict[str, Any]]  # one per point, the best first, by column name
    level: float = 0.95  # of the intervals

    def __str__(self) -> str:
        """Return the table as text."""
        name, mode = self.summary.metric
        seeds = self.summary.seeds
        word = "smallest" if mode == "min" else "largest"
        opening = f"last {name}, {word} median over {seeds} seeds first"
        if len(self.rows) < len(self.summary.order):
            opening += f", {len(self.rows)} of {len(self.summary.order)} points"
        ranking = text_tables.table(self.cells(), left=1)
        legend = (
            f"interval: holds the median with {100 * self.level:g} % confidence; "
            "P(best): the probability that the point is the best"
        )
        doubts = [f"! {doubt}" for doubt in self.summary.warnings]
        return "\n".join([opening, ranking, legend, *doubts])

    def cells(self) -> list[list[str]]:
        """Return the lines of the table as texts; the first is the head."""
        texts = [_texts(row) for row in self.rows]
        return [list(texts[0]), *(list(row.values()) for row in texts)]

    def __repr__(self) -> str:
        return shown(self, str)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))

    def to_csv(self) -> str:
        """Return the rows as comma-separated values, with a header line."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def summary(
    result: SweepResult,
    metric: Metric | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    key: int | jax.Array = 0,
) -> Summary:
    """Rank the points of a sweep, see `fngrad.sweeps.results.statistics.summarize`.

    Args:
        result: from `fngrad.sweep`.
        metric: a name in the history and "min" or "max", or a name that implies one
            (see `fngrad.metrics.directions`); ``None`` means the sweep's.
            Of a curve the last value counts.
        level: of the intervals, in (0, 1).
        resamples: of the bootstrap.
        key: of the bootstrap.

    Raises:
        ValueError: if the metric is unknown, has more axes than a curve, or is one of
            the test data, every lane diverged, or as `summarize`.
    """
    metric = statistics.selecting(_metric(result, metric))
    found = statistics.summarize(
        result.points,
        scores(result, metric[0]),
        result.diverged_at >= 0,
        metric,
        level=level,
        resamples=resamples,
        key=key,
        tried=result.notes.get("tried"),
    )
    found = _with_failures(found, result)
    seen = [name for name in result.history if "test" in name.split("/")]
    if seen:
        doubt = f"{', '.join(seen)} was measured at every point: do not select by it"
        found = found._replace(warnings=(*found.warnings, doubt))
    return found


def _with_failures(found: Summary, result: SweepResult) -> Summary:
    """Count the lanes of combinations that failed as such, not as diverged."""
    doubts, diverged = [], found.diverged.copy()
    for failure in result.notes.get("failures", []):
        diverged[failure.points] = 0
        values = ", ".join(f"{n} {short_text(x)}" for n, x in failure.static.items())
        doubts.append(f"{values} failed: {failure.error}")
    return found._replace(diverged=diverged, warnings=(*found.warnings, *doubts))


def scores(result: SweepResult, name: str) -> np.ndarray:
    """Return the last value of a metric in every lane, float64, shape (P, S).

    If combinations of static values recorded curves of different lengths, it is the
    last record of any lane of the combination.

    Args:
        result: from `fngrad.sweep`.
        name: in the history.

    Raises:
        ValueError: if the name is unknown, or the metric has more axes than a curve.
    """
    if name == result.notes["metric"][0]:
        return result.notes["values"]
    if name not in result.history:
        raise unknown_metric(name, result.history)
    curves = np.asarray(result.history[name], np.float64)
    if curves.ndim not in (2, 3):
        raise ValueError(
            "need a metric with one value or one curve per lane, "
            f"got shape {curves.shape[2:]} of {name!r}"
        )
    if not result.notes.get("static") or curves.ndim == 2 or 0 in curves.shape:
        return last_values(curves)
    last = np.broadcast_to(records(result, name)[:, None] - 1, curves.shape[:2])
    return np.take_along_axis(curves, last[:, :, None], axis=2)[:, :, 0]


def records(result: SweepResult, name: str) -> np.ndarray:
    """Return how many records of a curve each point has, int, shape (P,).

    Combinations of static values may record curves of different lengths, which are
    padded with NaN. Trailing records that are NaN in every lane of a combination cannot
    be distinguished from the padding.

    Args:
        result: from `fngrad.sweep`.
        name: of a curve in the history.
    """
    curves = np.asarray(result.history[name])
    points, _, length = curves.shape[:3]
    groups = len(result.state) if result.notes.get("static") else 1
    if groups == 1 or length == 0:
        return np.full(points, length)
    counts = result.notes.get("counts", [points // groups] * groups)
    others = (1, *range(3, curves.ndim))
    lengths = []
    for group in np.split(curves, np.cumsum(counts)[:-1]):
        seen = ~np.isnan(group.astype(np.float64)).all(axis=(0, *others))
        lengths.append(np.where(seen, np.arange(1, length + 1), 0).max())
    return np.repeat(np.maximum(lengths, 1), counts)


def best_point(result: SweepResult, metric: Metric | None = None) -> dict[str, Any]:
    """Return the values of the point with the best median, including static ones.

    Args:
        result: from `fngrad.sweep`.
        metric: as for `summary`.

    Raises:
        ValueError: as `summary`.
    """
    return _values(result, summary(result, metric).best)


def describe_point(result: SweepResult, number: int) -> str:
    """Return a point as text: first its text values, then its named numbers.

    Args:
        result: from `fngrad.sweep`.
        number: of the point.
    """
    values = _values(result, number).items()
    return ", ".join(
        value if isinstance(value, str) else f"{name} {short_text(value)}"
        for name, value in sorted(values, key=lambda item: not isinstance(item[1], str))
    )


def table(
    result: SweepResult,
    top: int | None = None,
    *,
    metric: Metric | None = None,
    also: Sequence[str] = (),
    level: float = 0.95,
    resamples: int = 2000,
    key: int | jax.Array = 0,
) -> Table:
    """Return the points of a sweep in a table, the best first.

    As text it has the hyperparameters, the median over seeds of the metric's last
    value and its interval, the
    probability that the point is best (in percent) and the number of lanes that
    diverged, followed by a legend and by warnings about the best point. A median is
    infinite if half the lanes diverged. If a combination of static values failed, one
    more column has its exception.

    Args:
        result: from `fngrad.sweep`.
        top: how many points to show; ``None`` means all.
        metric: a name in the history and "min" or "max", or a name that implies one
            (see `fngrad.metrics.directions`); ``None`` means the sweep's.
        also: more names in the history; their medians over the lanes that did not
            diverge are added.
        level: of the intervals, in (0, 1).
        resamples: of the bootstrap.
        key: of the bootstrap.

    Raises:
        ValueError: if ``top`` is below 1, a name in ``also`` is unknown, or as
            `summary`.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.sweeps import grid, sweep, table
        >>> def train_fn(point, key):
        ...     return (), {"val/loss": (point["rate"] - 0.2) ** 2}
        >>> result = sweep(train_fn, grid(rate=[0.1, 0.2, 0.4]), 5, progress=False)
        >>> print(table(result, top=2))
        last val/loss, smallest median over 5 seeds first, 2 of 3 points
        rank  rate   median           interval  P(best) %  diverged
        1      0.2    0.000      0.000 - 0.000      100.0         0
        2      0.1  0.01000  0.01000 - 0.01000        0.0         0
        interval: holds the median with 95 % confidence; P(best): the probability that \
the point is the best
    """
    if top is not None:
        top = numerics.check_count("top", top, 1)
    found = summary(result, metric, level=level, resamples=resamples, key=key)
    more = {name: _median(result, name) for name in also}
    failures = result.notes.get("failures", [])
    failed = {number: f.error for f in failures for number in f.points}
    rows = []
    for rank, number in enumerate(found.order[:top], start=1):
        row: dict[str, Any] = {"rank": rank, **_values(result, number)}
        row["median"] = float(found.median[number])
        row["low"], row["high"] = float(found.low[number]), float(found.high[number])
        row["P(best) %"] = round(100 * float(found.p_best[number]), 1)
        row["diverged"] = int(found.diverged[number])
        row |= {name: float(values[number]) for name, values in more.items()}
        rows.append(row | ({"failed": failed.get(number, "")} if failed else {}))
    return Table(found, rows, level)


def compare(
    result: SweepResult,
    a: Choice,
    b: Choice,
    *,
    metric: Metric | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    key: int | jax.Array = 0,
) -> Comparison:
    """Compare two points of a sweep, seed by seed.

    If a choice matches several points, as ``{"optimizer": "adam"}`` may, the one with
    the best median represents them. It was selected by the same seeds, which favors
    the choice with more points.

    Args:
        result: from `fngrad.sweep`.
        a, b: a point's number, or the values of some of its columns.
        metric: as for `table`. One of the test data may be compared but must not
            select, so then each choice must match one point.
        level: of the interval of the median difference, in (0, 1).
        resamples: of the bootstrap.
        key: of the bootstrap.

    Returns:
        The comparison; as text one line.

    Raises:
        ValueError: if a choice matches no point, or several points and the metric is
            one of the test data, or the metric is unknown.
    """
    metric = _metric(result, metric)
    values = np.where(result.diverged_at >= 0, np.nan, scores(result, metric[0]))
    first, second = (_number(result, choice, metric) for choice in (a, b))
    found = statistics.compare_scores(
        values[first], values[second], metric, level=level, resamples=resamples, key=key
    )
    return found._replace(names=(_label(a), _label(b)))


def _texts(row: dict[str, Any]) -> dict[str, str]:
    """Return a row as text, with both ends of the interval in one column."""
    names = list(row)
    measured = {"median", "low", "high", *names[names.index("diverged") + 1 :]}
    measured -= {"failed"}
    texts = {k: _digits(x) if k in measured else short_text(x) for k, x in row.items()}
    texts["P(best) %"] = f"{row['P(best) %']:.1f}"
    texts["low"] += f" - {texts.pop('high')}"
    return {"interval" if k == "low" else k: text for k, text in texts.items()}


def _digits(value: float) -> str:
    """Return a measured value with four digits, zeros at the end included."""
    return f"{value:#.4g}".rstrip(".")


def _values(result: SweepResult, number: int) -> dict[str, Any]:
    values = {name: column[number] for name, column in result.points.items()}
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in values.items()
    }


def _median(result: SweepResult, name: str) -> np.ndarray:
    """Return the median over the lanes that did not diverge, NaN where all did."""
    values = scores(result, name)
    kept = (result.diverged_at < 0) & np.isfinite(values)
    return np.array(
        [
            np.median(row[own]) if own.any() else np.nan
            for row, own in zip(values, kept, strict=True)
        ]
    )


def _metric(result: SweepResult, metric: Metric | None) -> Directed:
    """Return the metric and its mode; the sweep's own metric has the sweep's mode."""
    own = result.notes["metric"]
    return own if metric is None or metric == own[0] else directed(metric)


def _number(result: SweepResult, choice: Choice, metric: Directed) -> int:
    """Return the number of the best point that matches a choice."""
    count = len(result.diverged_at)
    if not isinstance(choice, Mapping):
        if not 0 <= choice < count:
            raise ValueError(f"need a point in [0, {count}), got {choice}")
        return int(choice)
    fits = np.ones(count, bool)
    for name, value in choice.items():
        if name not in result.points:
            raise ValueError(f"need columns among {list(result.points)}, got {name!r}")
        fits &= np.array([_equals(entry, value) for entry in result.points[name]])
    if not fits.any():
        raise ValueError(f"need a choice that matches a point, got {dict(choice)}")
    if fits.sum() == 1:
        return int(np.argmax(fits))
    order = summary(result, metric).order
    return int(order[fits[order]][0])


def _equals(entry: Any, value: Any) -> bool:
    """Compare; floats to the precision of float32, which a point may have."""
    if isinstance(value, float):
        return bool(np.isclose(entry, value, rtol=1e-6, atol=0.0).all())
    return np.array_equal(entry, value)


def _label(choice: Choice) -> str:
    if not isinstance(choice, Mapping):
        return f"point {choice}"
    return ", ".join(f"{name} {short_text(value)}" for name, value in choice.items())
