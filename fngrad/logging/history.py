"""The metrics of a run: NumPy arrays by name, each with its steps."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

import fngrad.logging.plots as plots
import fngrad.programs.curves as curves
import fngrad.programs.text_tables as text_tables
from fngrad.logging.quantities import (
    LOSS,
    MAX_PANELS,
    by_quantity,
    is_norm,
    wholes_of,
)
from fngrad.metrics.directions import Directed, known_direction
from fngrad.programs.printed import preformatted
from fngrad.training import TrainState

_MEANS = 25  # windows of a running mean in a curve; a shorter curve has none
_SHOWN = 12  # metrics in the text of a history


class Best(Protocol):
    """The best evaluation of a run."""

    step: int  # how many steps had been made
    metrics: dict[str, Any]  # floats by name, as loggers get them
    by: Directed  # the metric that decides, and its direction

    @property
    def state(self) -> TrainState:
        """A new copy of the state that was evaluated."""
        ...


class History(Mapping[str, np.ndarray]):
    """Metrics by name; ``history["loss"]`` is an array with one entry per record.

    Training metrics are recorded at every step, evaluation metrics (``val/...``) at
    every evaluation. ``notes`` holds facts of the run: which loop ran and why, how long
    compiling took, and what the time was spent on. ``best`` is the best evaluation,
    with its step, its metrics and a copy of its state on the host, see `fngrad.fit`;
    None if nothing decided which is the best.
    """

    def __init__(self, notes: dict[str, Any] | None = None) -> None:
        self.notes: dict[str, Any] = notes or {}
        self.best: Best | None = None
        self._steps: dict[str, _Column] = {}
        self._values: dict[str, _Column] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._column(self._values, name).read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def steps(self, name: str) -> np.ndarray:
        """Return how many steps had been made at each record of ``name``.

        Raises:
            KeyError: if it was not recorded.
        """
        return self._column(self._steps, name).read()

    def last(self, name: str) -> Any:
        """Return the newest record of ``name``: a float, or an array.

        Raises:
            KeyError: if it was not recorded.
        """
        value = self._column(self._values, name).last()
        return float(value) if value.ndim == 0 else value.copy()

    def tail(self, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps and the values of the newest ``count`` records, or of all.

        They alone are copied, whatever the length of the history.

        Raises:
            KeyError: if it was not recorded.

        Example:
            >>> import numpy as np
            >>> from fngrad.logging.history import History
            >>> history = History()
            >>> history.extend(np.arange(1, 6), {"loss": np.array([5, 4, 3, 2, 1])})
            >>> history.tail("loss", 2)
            (array([4, 5]), array([2, 1]))
        """
        columns = self._column(self._steps, name), self._column(self._values, name)
        steps, values = (column.tail(count) for column in columns)
        return steps, values

    def extend(self, steps: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Record a block: ``steps`` has shape (n,), each value (n, ...)."""
        steps = np.asarray(steps)
        for name, value in values.items():
            block = np.asarray(value)
            if name not in self._values:
                self._steps[name] = _Column(steps[:0])
                self._values[name] = _Column(block[:0])
            self._steps[name].extend(steps)
            self._values[name].extend(block)

    def truncate(self, step: int) -> None:
        """Remove what was recorded after ``step`` steps, and names without a record."""
        for name in list(self._values):
            count = int(np.sum(self._steps[name].read() <= step))
            if count == 0:
                del self._steps[name], self._values[name]
                continue
            self._steps[name].cut(count)
            self._values[name].cut(count)

    def to_arrays(self) -> list[dict[str, Any]]:
        """Return all records as a tree of arrays, as a checkpoint stores them.

        Returns:
            One group for all metrics that were recorded at the same steps:
            ``{"steps": array, "values": {name: array}}``.
        """
        groups: list[dict[str, Any]] = []
        for name in self:
            steps = self.steps(name)
            alike = [g for g in groups if np.array_equal(g["steps"], steps)]
            if not alike:
                alike = [{"steps": steps, "values": {}}]
                groups += alike
            alike[0]["values"][name] = self[name]
        return groups

    @classmethod
    def from_leaf_paths(
        cls, by_path: Mapping[str, np.ndarray], notes: dict[str, Any] | None = None
    ) -> "History":
        """Return the history whose `to_arrays` has these leaves.

        Args:
            by_path: as `fngrad.tree.leaf_paths` gives, such as
                ``{"0/steps": steps, "0/values/val/loss": values}``.
            notes: of the new history.

        Example:
            >>> import numpy as np
            >>> import fngrad.tree as tree
            >>> from fngrad.logging.history import History
            >>> history = History()
            >>> history.extend(np.array([1, 2]), {"loss": np.array([0.5, 0.25])})
            >>> leaves = tree.leaf_paths(history.to_arrays())
            >>> History.from_leaf_paths(leaves)["loss"]
            array([0.5 , 0.25])
        """
        history = cls(notes)
        for path, values in by_path.items():
            group, kind, *name = path.split("/", 2)
            if kind == "values":
                history.extend(by_path[f"{group}/steps"], {name[0]: values})
        return history

    def plot(self, *names: str) -> Any:
        """Return a matplotlib figure with one panel per quantity; notebooks show it.

        A metric and its ``val/`` counterpart share a panel, and so do all norms. Norms
        are drawn on a logarithmic axis, and so are losses that are positive and fall to
        a tenth or less. Long curves of a loss are drawn behind their running means.

        There are at most 12 panels of at most 40 curves: if there are more metrics,
        they are grouped by the last part of their names, then without the numbers in
        them. The title names what is not drawn, and gives the values of
        metrics that never change, such as a constant learning rate; a loss and an
        evaluation are always drawn.

        Args:
            names: what to draw; none means every scalar except ``is_finite``.

        Raises:
            ImportError: if matplotlib is missing; install ``fngrad[plot]``.
            KeyError: if a name was not recorded.
            ValueError: if there is nothing to draw.
        """
        groups = by_quantity(names or self._scalars(), self)
        constant = [q for q, group in groups.items() if self._is_constant(q, group)]
        if names or len(constant) == len(groups):
            constant = []
        varying = [q for q in groups if q not in constant]
        shown = {q: groups[q][: plots.MAX_LABELS] for q in varying[:MAX_PANELS]}
        panels = {quantity: self._panel(group) for quantity, group in shown.items()}
        panels[LOSS], pale = _with_means(panels.get(LOSS, {}))
        panels = {quantity: panel for quantity, panel in panels.items() if panel}
        texts = [f"{n} = {self.last(n):.4g}" for q in constant for n in groups[q]]
        drawn = {name for group in shown.values() for name in group}
        left = [n for q in varying for n in groups[q] if n not in drawn]
        lists = [("constant", texts), ("not drawn", left)]
        width = plots.LETTERS * min(len(panels), plots.PANELS_IN_A_ROW)
        title = [plots.wrapped(f"{w}: {_few(t)}", width) for w, t in lists if t]
        ratios = {
            q: 10.0 if q == LOSS else 1.0 for q in panels if q == LOSS or is_norm(q)
        }
        logarithmic = [q for q, x in ratios.items() if _is_logarithmic(panels[q], x)]
        text = "\n".join(title)
        return plots.figure(panels, log_scale=logarithmic, title=text, pale=pale)

    def _panel(self, names: list[str]) -> dict[str, list[plots.Run]]:
        return {name: [(self.steps(name), self[name])] for name in names}

    def _scalars(self) -> list[str]:
        """Return the names of scalars; ``is_finite`` only if there are no others."""
        found = self._wholes_first()
        return [n for n in found if n != "is_finite"] or found

    def _wholes_first(self) -> list[str]:
        """Return the names of scalars, those of layers and groups at the end."""
        found = [name for name in self if np.ndim(self.last(name)) == 0]
        parts = wholes_of(found)
        return sorted(found, key=lambda name: name in parts)

    def _is_constant(self, quantity: str, names: list[str]) -> bool:
        """Return whether a quantity, unless a loss or an evaluation, never changes."""
        if quantity == LOSS or any(name.startswith("val/") for name in names):
            return False
        curves = [self[name] for name in names]
        return all(len(c) > 1 and np.all(c == c[0]) for c in curves)

    def __repr__(self) -> str:
        texts = [f"{name}={self.last(name):.4g}" for name in self._wholes_first()]
        more = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
        return f"History({', '.join([*texts[:_SHOWN], *more])})"

    def _repr_html_(self) -> str:
        """Return a table of the last and the best values, and the curve of the loss."""
        return preformatted(self.summary()) + self.curve()

    def summary(self) -> str:
        """Return a table of all scalars: how many records, the last, the best.

        Whether the smallest or the largest value is the best is known from the name.
        Of metrics by layer or group it has the first 12.

        Example:
            >>> import numpy as np
            >>> from fngrad.logging.history import History
            >>> history = History()
            >>> losses = np.array([0.5, 0.25, 0.375])
            >>> history.extend(np.array([1, 2, 3]), {"loss": losses, "rate": losses})
            >>> print(history.summary())
            metric  records   last  best  at step
            loss          3  0.375  0.25        2
            rate          3  0.375
        """
        rows = [["metric", "records", "last", "best", "at step"]]
        names = self._scalars()
        parts = list(wholes_of(names))
        left_out = parts[_SHOWN:]
        for name in (name for name in names if name not in left_out):
            curve = self[name]
            row = [name, str(len(curve)), f"{self.last(name):.4g}"]
            rows.append([*row, *_best(name, self.steps(name), curve)])
        more = f"\n... and {len(left_out)} more by layer or group" if left_out else ""
        return text_tables.table(rows, left=1) + more

    def curve(self, name: str = "loss") -> str:
        """Return the curve of a scalar as SVG; the empty string if there is none."""
        if name not in self or np.ndim(self.last(name)) != 0:
            return ""
        return curves.svg(name, self.steps(name), self[name])

    def _column(self, columns: dict[str, "_Column"], name: str) -> "_Column":
        if name not in columns:
            raise KeyError(f"need one of {sorted(columns)}, got {name!r}")
        return columns[name]


class _Column:
    """Rows in a buffer that doubles, so appending has constant amortized cost."""

    def __init__(self, rows: np.ndarray):
        self._buffer = np.array(rows)
        self._size = len(rows)

    def read(self) -> np.ndarray:
        return self.tail(self._size)

    def tail(self, count: int) -> np.ndarray:
        return self._buffer[max(self._size - count, 0) : self._size].copy()

    def last(self) -> np.ndarray:
        return self._buffer[self._size - 1]

    def cut(self, size: int) -> None:
        self._size = size

    def extend(self, rows: np.ndarray) -> None:
        size = self._size + len(rows)
        dtype = np.result_type(self._buffer, rows)
        if size > len(self._buffer) or dtype != self._buffer.dtype:
            room = np.empty((max(size, 2 * self._size), *rows.shape[1:]), dtype)
            room[: self._size] = self._buffer[: self._size]
            self._buffer = room
        self._buffer[self._size : size] = rows
        self._size = size


def _best(name: str, steps: np.ndarray, curve: np.ndarray) -> list[str]:
    """Return a metric's best value and its step, or two empty texts."""
    mode = known_direction(name)
    finite = np.flatnonzero(np.isfinite(curve))
    if mode is None or not finite.size:
        return ["", ""]
    pick = np.argmin if mode == "min" else np.argmax
    at = finite[pick(curve[finite])]
    return [f"{curve[at]:.4g}", str(steps[at])]


def _with_means(panel: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Add the running means of long curves; return the panel and the long ones."""
    found, long = {}, []
    for name, runs in panel.items():
        found[name] = runs
        ((steps, values),) = runs
        if len(values) >= 4 * _MEANS:
            window = len(values) // _MEANS
            mean = plots.running_mean(values, window)
            found[f"{name}, mean of {window} records"] = [(steps, mean)]
            long.append(name)
    return found, long


def _is_logarithmic(panel: Mapping[str, Any], ratio: float) -> bool:
    """Return whether curves are positive, apart from some zeros, over such a range."""
    curves = [values[np.isfinite(values)] for ((_, values),) in panel.values()]
    if not curves or not all(
        np.any(c > 0) and np.all((c == 0) | (c > plots.SMALLEST_ON_LOG_AXIS))
        for c in curves
    ):
        return False
    positive = np.concatenate([c[c > 0] for c in curves])
    return bool(np.max(positive) >= ratio * np.min(positive))


def _few(texts: list[str]) -> str:
    more = f" and {len(texts) - 6} more" if len(texts) > 6 else ""
    return ", ".join(texts[:6]) + more
