"""What is recorded in run folders: status, config, metrics, checkpoints."""

import datetime
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import fngrad.checkpoint.step_folders as step_folders
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.reading import steps
from fngrad.files.json_values import NON_FINITE
from fngrad.files.locks import is_in_use
from fngrad.logging.differences import flatten
from fngrad.logging.history import History
from fngrad.logging.run_folder import read_manifest
from fngrad.logging.writers import read_jsonl
from fngrad.metrics.directions import known_direction
from fngrad.types import Mode

Status = Literal["running", "completed", "interrupted", "failed", "unknown"]
STATUSES = ("running", "completed", "interrupted", "failed", "unknown")
_DELIBERATE = "callback"  # it returned fngrad.STOP, as when its time was up
_ENDED_WELL = ("completed", "early_stopping", "exhausted", _DELIBERATE)
_PRUNED = {"checkpoints", "lanes", "__pycache__", "node_modules", "venv"}
DEFAULT_METRICS = ("val/loss", "val/accuracy", "loss")


class RunRecord(NamedTuple):
    """What is recorded in a run folder."""

    path: Path
    name: str
    status: Status
    reason: str  # why it ended, in words; empty while it runs
    manifest: dict[str, Any]
    config: dict[str, Any]  # by dotted key
    history: History
    checkpoints: Path | None  # the folder
    steps: list[int]  # those with a complete checkpoint

    @property
    def started(self) -> str:
        """When the first call began, in ISO 8601; empty if that is not recorded."""
        return str(self.manifest.get("started") or "")

    @property
    def resumed(self) -> list[dict[str, Any]]:
        """Each later start: its time, and the facts that were not as at the first."""
        return self.manifest.get("resumed") or []

    @property
    def facts(self) -> dict[str, Any]:
        """The manifest with the facts of the last start."""
        return self.manifest | (self.resumed[-1] if self.resumed else {})

    @property
    def step(self) -> int:
        """The last step of which there is a record."""
        reached = [int(self.history.steps(name)[-1]) for name in self.history]
        return max([self.manifest.get("step") or 0, *reached, *self.steps[-1:]])

    @property
    def seconds(self) -> float | None:
        """The seconds from the first start to the end, or to now; None if unknown."""
        begin = _time(self.manifest.get("started"))
        end = _time(self.manifest.get("ended"))
        if self.status == "running":
            end = datetime.datetime.now(datetime.UTC)
        if end is None and self.status == "failed":  # killed
            end = _last_change(self.path)
        return None if begin is None or end is None else (end - begin).total_seconds()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do; the same call goes on after `fngrad.STOP`."""
        return self.status == "completed" and self.reason != _DELIBERATE

    def last(self, metric: str) -> float | None:
        """Return the newest record of a scalar; None if there is none."""
        return self.history.last(metric) if metric in self.history else None

    def best(self, metric: str, mode: Mode | None) -> tuple[float, int] | None:
        """Return the best record of a scalar and its step; None if there is none.

        Args:
            metric: its name; of several labelled curves, the best.
            mode: which way is better; None if that is not known.
        """
        sign = {"min": 1.0, "max": -1.0}.get(mode or "", math.nan)
        found = [
            (sign * value, value, step)
            for name in self.history
            if mode and metric in (name, unlabelled(name))
            for step, value in zip(
                self.history.steps(name).tolist(),
                self.history[name].tolist(),
                strict=True,
            )
            if math.isfinite(value)
        ]
        if not found:
            return None
        _, value, step = min(found, key=lambda each: each[0])
        return value, step


def read_run(path: str | Path, name: str | None = None) -> RunRecord:
    """Return what is recorded in a run folder.

    Args:
        path: the folder.
        name: of the run; the folder's name if None.

    Raises:
        ValueError: if it is not a run folder, or one of its files is damaged.
    """
    path = Path(path)
    if not is_run(path) and (path / "sweep.json").is_file():
        raise ValueError(
            f"need a run folder, got {str(path)!r}, the folder of a sweep: "
            "`fngrad report` shows it"
        )
    if not is_run(path):
        raise ValueError(
            f"need a run folder, with manifest.json or metrics.jsonl, got "
            f"{str(path)!r}; `fngrad runs FOLDER` lists those below a folder"
        )
    manifest = read_manifest(path)
    folder = checkpoint_folder(path, manifest)
    status, reason = status_of(manifest, is_running=is_in_use(path))
    return RunRecord(
        path=path,
        name=name or path.resolve().name,
        status=status,
        reason=reason,
        manifest=manifest,
        config=flatten(_json(path / "config.json")),
        history=read_history(path / "metrics.jsonl"),
        checkpoints=folder,
        steps=steps(folder) if folder else [],
    )


def status_of(manifest: dict[str, Any], *, is_running: bool) -> tuple[Status, str]:
    """Return the status of a run, and why it ended.

    A run that a callback ended is completed, as that is what it asked for. A run
    without a recorded end that no process works on was killed, and so has failed.

    Args:
        manifest: of the run.
        is_running: whether a process holds the lock of its folder.

    Example:
        >>> from fngrad.commands.run_records import status_of
        >>> status_of({"stopped": "early_stopping"}, is_running=False)
        ('completed', 'early_stopping')
        >>> status_of({"stopped": None}, is_running=False)
        ('failed', 'killed')
    """
    if is_running:
        return "running", ""
    if "stopped" not in manifest:  # written by a program without `fit`
        is_finished = "results" in manifest
        return ("completed", "completed") if is_finished else ("unknown", "")
    stopped, failure = manifest["stopped"], manifest.get("failure")
    if stopped in _ENDED_WELL:
        return "completed", stopped
    if stopped is not None:
        return "interrupted", stopped
    if failure is None:
        return "failed", "killed"
    is_interrupt = failure.startswith(("KeyboardInterrupt", "SystemExit"))
    return "interrupted" if is_interrupt else "failed", failure


def is_run(path: Path) -> bool:
    """Return whether a folder is that of a run; a checkpoint's is not."""
    has_manifest = (path / "manifest.json").is_file()
    has_config = (path / "config.json").is_file()
    return (has_manifest and has_config) or (path / "metrics.jsonl").is_file()


def find_runs(folder: str | Path) -> Iterator[Path]:
    """Yield the run folders at or below a folder, in the order of their names.

    Raises:
        ValueError: if it is not a folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"need a folder of runs, got {str(folder)!r}, not a folder")
    for root, names, _ in os.walk(folder):
        names[:] = sorted(n for n in names if n not in _PRUNED and n[0] != ".")
        if is_run(Path(root)):
            yield Path(root)


def read_runs(folder: str | Path) -> tuple[list[RunRecord], list[str]]:
    """Return the records of the runs at or below a folder.

    Returns:
        The records, named by their paths relative to the folder, and one error text per
        run that cannot be read.

    Raises:
        ValueError: if it is not a folder.
    """
    records, problems = [], []
    for path in find_runs(folder):
        try:
            records.append(read_run(path, _relative(path, Path(folder))))
        except (OSError, ValueError, CheckpointError) as error:
            problems.append(f"{path}: {error}")
    return records, problems


def read_named(paths: Sequence[str | Path]) -> list[RunRecord]:
    """Return the records of runs, named by their paths without the common beginning.

    Raises:
        ValueError: if one is not a run folder, or a file of it is damaged.
    """
    whole = [Path(path).resolve() for path in paths]
    parents = [str(path.parent) for path in whole]
    start = Path(os.path.commonpath(parents)) if len(set(whole)) > 1 else None
    return [
        read_run(path, _relative(full, start) if start else None)
        for path, full in zip(paths, whole, strict=True)
    ]


def checkpoint_folder(path: Path, manifest: dict[str, Any]) -> Path | None:
    """Return the folder of a run's checkpoints, also after the run was moved."""
    recorded = manifest.get("checkpoints")
    for folder in (path / "checkpoints", Path(recorded) if recorded else None):
        if folder is not None and step_folders.listing(folder):
            return folder
    return None


def read_history(path: Path) -> History:
    """Return the metrics in a file of records; empty if there is no file.

    Several runs may share a file, told apart by labels: entries of text, and whole
    numbers where the steps of one label do not ascend. Each gets curves of its own,
    such as ``loss [sgd 0]``.

    Raises:
        ValueError: if a line is not a record.
    """
    records = read_jsonl(path) if path.is_file() else []
    texts = _texts(records)
    if texts and not _ascends(records, texts):
        texts += _whole_numbers(records)
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        label = " ".join(str(record[name]) for name in texts if name in record)
        for name, value in record.items():
            if name != "step" and name not in texts:
                steps_, values = columns.setdefault(
                    f"{name} [{label}]" if label else name, ([], [])
                )
                steps_.append(record["step"])
                values.append(value)
    history = History()
    for name, (steps_, values) in columns.items():
        history.extend(np.array(steps_), {name: np.array(values, np.float64)})
    return history


def unlabelled(name: str) -> str:
    """Return the name of a metric without the label of its curve."""
    return name.partition(" [")[0]


def parsed_metric(text: str) -> tuple[str, Mode | None]:
    """Return a metric's name and its direction, "min", "max" or None if unknown.

    Example:
        >>> from fngrad.commands.run_records import parsed_metric
        >>> parsed_metric("val/loss"), parsed_metric("val/score:max")
        (('val/loss', 'min'), ('val/score', 'max'))
    """
    name, _, mode = text.rpartition(":")
    if mode == "min" or mode == "max":
        return name, mode
    return text, known_direction(unlabelled(text))


def default_metric(records: Sequence[RunRecord]) -> str | None:
    """Return the metric by which runs are compared if none is asked for."""
    names = [unlabelled(name) for record in records for name in record.history]
    validation = [n for n in names if n.startswith("val/") and known_direction(n)]
    candidates = [*DEFAULT_METRICS[:1], *validation, *DEFAULT_METRICS[1:], *names[:1]]
    return next((name for name in candidates if name in names), None)


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Return the keys of the config that are not equal in all runs."""
    keys = dict.fromkeys(key for record in records for key in record.config)
    missing = object()
    return [
        key
        for key in keys
        if any(
            record.config.get(key, missing) != records[0].config.get(key, missing)
            for record in records
        )
    ]


def varying(records: Sequence[RunRecord]) -> list[str]:
    """Return the keys of the config that have different values in two of the runs.

    A key that a run lacks is not different there: another experiment has other keys.
    """
    return [
        key
        for key in differing(records)
        if len({repr(r.config[key]) for r in records if key in r.config}) > 1
    ]


def _texts(records: list[dict[str, Any]]) -> list[str]:
    found = {
        name: None
        for record in records
        for name, value in record.items()
        if isinstance(value, str) and value not in NON_FINITE
    }
    return list(found)


def _ascends(records: list[dict[str, Any]], labels: list[str]) -> bool:
    last: dict[tuple[Any, ...], int] = {}
    for record in records:
        label = tuple(record.get(name) for name in labels)
        if record["step"] < last.get(label, -1):
            return False
        last[label] = record["step"]
    return True


def _whole_numbers(records: list[dict[str, Any]]) -> list[str]:
    names = [name for name in records[0] if name != "step"]
    return [n for n in names if all(type(r.get(n)) is int for r in records)]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"need JSON in {path}, got {error}") from error
    return content if isinstance(content, dict) else {}


def _time(text: Any) -> datetime.datetime | None:
    try:
        found = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _last_change(path: Path) -> datetime.datetime | None:
    for name in ("metrics.jsonl", "manifest.json"):
        if (path / name).is_file():
            changed = (path / name).stat().st_mtime
            return datetime.datetime.fromtimestamp(changed, datetime.UTC)
    return None


def _relative(path: Path, start: Path) -> str:
    relative = os.path.relpath(path.resolve(), start.resolve())
    return path.resolve().name if relative == "." else relative
