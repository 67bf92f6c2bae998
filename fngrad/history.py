"""What a run recorded: NumPy arrays by name, each with the steps it belongs to."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import fngrad.logging.plots as plots


class History(Mapping[str, np.ndarray]):
    """Metrics by name; ``history["loss"]`` is an array, one entry a record.

    Training metrics are recorded at every step, evaluation metrics (``val/...``) when
    they were computed. ``notes`` says how the run was made: which loop, why, and how
    long compiling took.
    """

    def __init__(self, notes: dict[str, Any] | None = None) -> None:
        self.notes = notes or {}
        self._steps: dict[str, list[np.ndarray]] = {}
        self._values: dict[str, list[np.ndarray]] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._values:
            raise KeyError(f"need one of {sorted(self._values)}, got {name!r}")
        return np.concatenate(self._values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def steps(self, name: str) -> np.ndarray:
        """Return how many steps had been made at each record of ``name``."""
        if name not in self._steps:
            raise KeyError(f"need one of {sorted(self._steps)}, got {name!r}")
        return np.concatenate(self._steps[name])

    def last(self, name: str) -> Any:
        """Return the newest record of ``name``: a float, or an array."""
        if name not in self._values:
            raise KeyError(f"need one of {sorted(self._values)}, got {name!r}")
        value = self._values[name][-1][-1]
        return float(value) if value.ndim == 0 else value

    def extend(self, steps: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Record a block: ``steps`` has shape (n,), each value (n, ...)."""
        for name, block in values.items():
            self._steps.setdefault(name, []).append(np.asarray(steps))
            self._values.setdefault(name, []).append(np.asarray(block))

    def plot(self, *names: str) -> Any:
        """Return a matplotlib figure, a panel a quantity; a notebook shows it.

        A metric and its ``val/`` twin share a panel, and all norms do.

        Args:
            names: what to draw; none means every scalar but ``is_finite``.

        Raises:
            ImportError: matplotlib is missing; install ``fngrad[plot]``.
            KeyError: a name that was not recorded.
            ValueError: there is nothing to draw.
        """
        scalars = [n for n in self if self[n].ndim == 1 and n != "is_finite"]
        panels: dict[str, dict[str, list]] = {}
        for name in sorted(names or scalars, key=lambda name: _panel(name) != "loss"):
            curve = (self.steps(name), self[name])
            panels.setdefault(_panel(name), {})[name] = [curve]
        logarithmic = [name for name in ("norm",) if name in panels]
        return plots.figure(panels, log_scale=logarithmic)

    def __repr__(self) -> str:
        last = {name: self.last(name) for name in self if np.ndim(self.last(name)) == 0}
        shown = ", ".join(f"{name}={value:.4g}" for name, value in last.items())
        return f"History({shown})"


def _panel(name: str) -> str:
    """Return the quantity that a metric measures."""
    return "norm" if "norm" in name else name.removeprefix("val/")
