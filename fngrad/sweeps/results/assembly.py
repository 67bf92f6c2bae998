"""One result from the outputs of the combinations of static values."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import fngrad.tree as tree
from fngrad.sweeps.results.result import (
    SweepResult,
    diverged_at,
    last_values,
    stack_histories,
)


class Part(NamedTuple):
    """The trainings with one combination of static values: P points, S seeds."""

    static: dict[str, Any]  # the values, by name
    points: Any  # a tree of columns (P, ...)
    outputs: Any | None  # (state, history), leaves (P, S, ...); None if it failed

    @property
    def count(self) -> int:
        """The number of points, P."""
        return len(next(iter(tree.leaf_paths(self.points).values())))


def assemble(parts: Sequence[Part], seeds: int, notes: dict[str, Any]) -> SweepResult:
    """Concatenate the results of all combinations along the points.

    A combination that failed has no state, a history of NaN and no step at which it
    diverged.

    Args:
        parts: of all combinations, with the same static names and columns. At least
            one did not fail.
        seeds: S.
        notes: of the result, ``metric`` among them.
    """
    name, _ = notes["metric"]
    counts = [part.count for part in parts]
    columns = [tree.leaf_paths(part.points) for part in parts]
    points = {path: np.concatenate([c[path] for c in columns]) for path in columns[0]}
    for label in parts[0].static:
        values = _column([part.static[label] for part in parts])
        points[label] = np.repeat(values, counts)
    outputs = [(None, {}) if part.outputs is None else part.outputs for part in parts]
    lanes = [(count, seeds) for count in counts]
    histories = [history for _, history in outputs]
    values = [
        last_values(history[name]) if history else np.full(shape, np.nan)
        for history, shape in zip(histories, lanes, strict=True)
    ]
    steps = [
        diverged_at(history, name) if history else np.full(shape, -1, np.int32)
        for history, shape in zip(histories, lanes, strict=True)
    ]
    states = [state for state, _ in outputs]
    return SweepResult(
        points=points,
        state=states if parts[0].static else states[0],
        history=stack_histories(histories, lanes),
        diverged_at=np.concatenate(steps),
        notes=notes | {"values": np.concatenate(values)},
    )


def _column(values: list[Any]) -> np.ndarray:
    """Return values of any type as a column; mixed types as objects."""
    for kinds in (str, bool, int | float):
        if all(isinstance(value, kinds) for value in values):
            return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column
