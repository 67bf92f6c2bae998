"""What a run recorded: NumPy arrays by name, each with the steps it belongs to."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fngrad.extras import import_extra


class History(Mapping[str, np.ndarray]):
    """Metrics by name; ``history["loss"]`` is an array, one entry a record.

    Training metrics are recorded at every step, evaluation metrics (``val/...``) when
    they were computed. ``notes`` says how the run was made: which loop, why, and how
    long compiling took.
    """

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
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
        """Return a matplotlib figure with one curve a name (default: all scalars).

        Raises:
            ImportError: matplotlib is missing; install ``fngrad[plot]``.
            KeyError: a name that was not recorded.
        """
        figure_module = import_extra("matplotlib.figure", "plot")
        shown = names or [name for name in self if self[name].ndim == 1]
        figure = figure_module.Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name in shown:
            axes.plot(self.steps(name), self[name], label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("value")
        axes.legend()
        return figure

    def __repr__(self) -> str:
        last = {name: self.last(name) for name in self if np.ndim(self.last(name)) == 0}
        shown = ", ".join(f"{name}={value:.4g}" for name, value in last.items())
        return f"History({shown})"
