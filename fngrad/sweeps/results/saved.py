"""The result of a finished sweep as a file, without the states."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from fngrad.files.atomic_writes import write_atomically
from fngrad.programs.printed import recorded
from fngrad.sweeps.results.result import Failure, SweepResult

NAME = "result.npz"
_NOTES = ("metric", "static", "seconds", "restored")
_OF_SEARCH = ("counts", "trials")
_POINTS, _HISTORY = "points/", "history/"


def save(folder: Path, result: SweepResult) -> None:
    """Write the points, the history and the ranking of a sweep, in one atomic step.

    Args:
        folder: of the sweep.
        result: its result; the state is left out, which the folder's lanes hold.

    Raises:
        OSError: if the file cannot be written.
    """
    notes = {name: result.notes[name] for name in _NOTES}
    notes |= {
        n: np.asarray(result.notes[n]).tolist() for n in _OF_SEARCH if n in result.notes
    }
    notes["combinations"] = len(result.state) if notes["static"] else None
    notes["failures"] = [
        failure._replace(static={n: recorded(x) for n, x in failure.static.items()})
        for failure in result.notes.get("failures", [])
    ]
    arrays = {
        **{_POINTS + name: _plain(column) for name, column in result.points.items()},
        **{_HISTORY + name: _plain(x) for name, x in result.history.items()},
        "diverged_at": result.diverged_at,
        "values": result.notes["values"],
        "notes": np.array(json.dumps(notes)),
    }
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(folder / NAME, content.getvalue())


def load(folder: str | Path) -> SweepResult:
    """Return the result of a finished sweep, as ``sweep(folder=...)`` left it.

    Args:
        folder: of the sweep.

    Returns:
        The result with None in place of states, which the same call of `fngrad.sweep`
        returns. Values of ``static`` that are not numbers are texts.

    Raises:
        FileNotFoundError: if the sweep is not finished or was not saved there.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import fngrad.sweeps as sweeps
        >>> def train_fn(point, key):
        ...     return (), {"loss": jnp.square(point["x"] - 1.0)}
        >>> points = sweeps.grid(x=[0.0, 1.0, 3.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"keys": 1, "metric": "loss", "progress": False}
        ...     result = sweeps.sweep(train_fn, points, folder=folder, **options)
        ...     loaded = sweeps.load(folder)
        >>> loaded.history["loss"][:, 0].tolist(), loaded.notes["metric"]
        ([1.0, 0.0, 4.0], ('loss', 'min'))
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"need the folder of a finished sweep, with {NAME}, got {str(folder)!r}: "
            "the same call of fngrad.sweep finishes it"
        )
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    notes = json.loads(str(arrays["notes"]))
    combinations = notes.pop("combinations")
    notes["failures"] = [Failure(*fields) for fields in notes.get("failures", [])]
    return SweepResult(
        points=_under(_POINTS, arrays),
        state=None if combinations is None else [None] * combinations,
        history=_under(_HISTORY, arrays),
        diverged_at=arrays["diverged_at"],
        notes=notes | {"metric": tuple(notes["metric"]), "values": arrays["values"]},
    )


def _plain(values: Any) -> np.ndarray:
    """Return an array of a dtype that NumPy's files know.

    Objects become texts, and numbers in 16 or 8 bits that NumPy lacks float32.
    """
    array = np.asarray(values)
    if array.dtype == object:
        return np.array([str(x) for x in array])
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
