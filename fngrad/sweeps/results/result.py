"""The result of a sweep, and the step at which each lane diverged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import fngrad.programs.text_tables as text_tables
from fngrad.programs.printed import preformatted, shown
from fngrad.training.divergence import CHECKED, is_bad


class Failure(NamedTuple):
    """A combination of static values whose training raised."""

    static: dict[str, Any]  # its values, by name
    points: list[int]  # their numbers in the result
    error: str  # the exception's type and the first line of its message
    traceback: str  # as Python prints it, with the whole message


class SweepResult(NamedTuple):
    """Trainings by point and seed: P points, S seeds.

    With ``static`` the points of every combination of static values follow one
    another, the last name varying fastest. The points of a combination that failed
    have NaN in the history, and None as their state.
    """

    points: dict[str, np.ndarray]  # columns (P, ...) by path, static ones too
    state: Any  # leaves (P, S, ...); with static a list, one tree per combination
    history: dict[str, np.ndarray]  # (P, S, ...) by metric
    diverged_at: np.ndarray  # int32, (P, S); -1 where the lane did not diverge
    notes: dict[str, Any]  # see `fngrad.sweep`

    def __repr__(self) -> str:
        return shown(self, _text)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


def check_pair(outputs: Any, form: str) -> tuple[Any, dict[str, Any]]:
    """Return the outputs of a training, or of a part of one: (state, history).

    Args:
        outputs: of one lane.
        form: how the function is called, for the message.

    Raises:
        TypeError: if they are not a pair of a state and a dict.
    """
    is_pair = isinstance(outputs, tuple) and len(outputs) == 2
    if not is_pair or not isinstance(outputs[1], dict):
        raise TypeError(
            f"need {form} -> (state, history), history a dict of arrays by name, got "
            f"{type(outputs[1] if is_pair else outputs).__name__}"
        )
    return outputs


def last_values(curves: np.ndarray) -> np.ndarray:
    """Return the last value of a metric in each lane.

    Args:
        curves: shape (P, S), or (P, S, records).

    Returns:
        float64, shape (P, S); NaN where a curve has no records.
    """
    curves = np.asarray(curves, np.float64)
    if curves.ndim == 2:
        return curves
    if curves.shape[2] == 0:
        return np.full(curves.shape[:2], np.nan)
    return curves[:, :, -1]


def diverged_at(history: dict[str, np.ndarray], metric: str) -> np.ndarray:
    """Return the step at which each lane first was not finite, or -1.

    A step counts from 0 by its place in ``is_finite`` and ``loss``. Where only the
    metric is not finite, the lane diverged at the last step before that record, the
    records taken as evenly spaced.

    Args:
        history: arrays (P, S) or (P, S, records), by name.
        metric: what lanes are compared by.

    Returns:
        int32, shape (P, S).
    """
    names = [name for name in CHECKED if name in history]
    at_steps = [_first_bad(history[name]) for name in names]
    steps = max((_records(history[name]) for name in names), default=0)
    records = _records(history[metric])
    record = _first_bad(history[metric])
    spacing = max(-(-steps // max(records, 1)), 1)
    last = (steps or records) - 1
    step = np.where(record < 0, -1, np.minimum((record + 1) * spacing - 1, last))
    first = np.stack([*at_steps, step])
    none = np.iinfo(np.int32).max
    first = np.where(first < 0, none, first).min(axis=0)
    return np.where(first == none, -1, first).astype(np.int32)


def stack_histories(
    histories: Sequence[dict[str, np.ndarray]], lanes: Sequence[tuple[int, int]]
) -> dict[str, np.ndarray]:
    """Return one history of all combinations, joined along the points.

    If shapes differ, arrays become float and are padded with NaN at the end; a metric
    that a combination lacks is NaN there.

    Args:
        histories: of each combination; one that failed has none of the metrics.
        lanes: the numbers of points and seeds of each.

    Raises:
        ValueError: if a metric differs in its number of axes.
    """
    names = dict.fromkeys(name for history in histories for name in history)
    return {name: _stack(name, histories, lanes) for name in names}


def _text(result: SweepResult) -> str:
    """Return the numbers of points and seeds, the range of columns and last values."""
    lanes = np.asarray(result.diverged_at)
    points, seeds = lanes.shape
    head = (
        f"SweepResult: {points} points, {seeds} seeds, "
        f"{np.sum(lanes >= 0)} of {lanes.size} lanes diverged"
    )
    if failures := result.notes.get("failures"):
        head += f", {len(failures)} of {len(result.state)} combinations failed"
    rows = [["", "from", "to", "shape"]]
    rows += [[name, *_range(column)] for name, column in result.points.items()]
    rows += [
        [f"{name}, last", *_range(last_values(curves))[:2], str(np.shape(curves))]
        for name, curves in result.history.items()
        if np.ndim(curves) in (2, 3)
    ]
    return f"{head}\n{text_tables.table(rows)}"


def _range(values: np.ndarray) -> list[str]:
    """Return the smallest and largest finite value and the shape, as text."""
    values = np.asarray(values)
    if values.dtype.kind in "biuf":
        finite = values[np.isfinite(values)]
        ends = [finite.min(), finite.max()] if finite.size else [np.nan, np.nan]
        texts = [f"{end:.4g}" for end in ends]
    else:
        texts = [f"{len(set(map(str, values.ravel())))} values", ""]
    return [*texts, str(values.shape)]


def _stack(
    name: str,
    histories: Sequence[dict[str, np.ndarray]],
    lanes: Sequence[tuple[int, int]],
) -> np.ndarray:
    found = [history[name] for history in histories if name in history]
    ranks = sorted({x.ndim for x in found})
    if len(ranks) > 1:
        raise ValueError(
            f"need a metric of one rank for all static values, got {name!r} with "
            f"{[rank - 2 for rank in ranks]} axes"
        )
    target = tuple(
        max(sizes) for sizes in zip(*(x.shape[2:] for x in found), strict=True)
    )
    if len(found) == len(histories) and all(x.shape[2:] == target for x in found):
        return np.concatenate(found)
    dtype = np.result_type(*(x.dtype for x in found), np.float32)
    blocks = []
    for history, shape in zip(histories, lanes, strict=True):
        block = np.full((*shape, *target), np.nan, dtype)
        if name in history:
            x = history[name]
            block[tuple(slice(size) for size in x.shape)] = x
        blocks.append(block)
    return np.concatenate(blocks)


def _first_bad(curves: np.ndarray) -> np.ndarray:
    """Return the first record that is false or not finite, or -1: (P, S)."""
    bad = np.asarray(is_bad(curves)).reshape(*curves.shape[:2], -1)
    if bad.shape[2] == 0:
        return np.full(curves.shape[:2], -1)
    return np.where(bad.any(axis=2), bad.argmax(axis=2), -1)


def _records(curves: np.ndarray) -> int:
    return curves.shape[2] if curves.ndim > 2 else 1
