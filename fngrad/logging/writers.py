"""Loggers that write to files.

A *logger* is a function ``logger(step, values)`` of an int and a dict of floats; one
that owns a file also has ``close()``.
"""

import csv as csv_format
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fngrad.extras import import_extra
from fngrad.local_paths import check_local
from fngrad.logging.files import (
    from_json_number,
    open_to_append,
    to_json,
    write_atomically,
)


class Logger(Protocol):
    """What `fit` calls with a step and the metrics by name, each a float."""

    def __call__(self, step: int, values: dict[str, Any], /) -> None: ...


@dataclasses.dataclass(frozen=True)
class FileLogger:
    """A logger that owns a file, a context manager too; closing twice is allowed."""

    write: Callable[[int, Mapping[str, Any]], None]
    close: Callable[[], None]

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        self.write(step, values)

    def __enter__(self) -> "FileLogger":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def jsonl(
    path: str | Path, labels: Mapping[str, str | int] | None = None
) -> FileLogger:
    """Log to a file of one JSON object a line: ``{"step": 10, "loss": 0.5}``.

    Every line is flushed, so a killed run leaves whole lines, and at most one torn
    one. An existing file is appended to, after a torn last line is cut off; `cut_jsonl`
    removes what is beyond the step where a run goes on.

    Args:
        path: the file; its folder is made.
        labels: what every line says of its run besides, such as
            ``{"optimizer": "sgd", "seed": 3}`` where many runs share a file.

    Returns:
        The logger. Non-finite floats are written as the strings ``"NaN"``,
        ``"Infinity"`` and ``"-Infinity"``; `read_jsonl` turns them back.

    Raises:
        OSError: the file cannot be written.
        ValueError: the existing file is none of this kind, and is left as it is, or a
            label is called ``step``; at a call, a value is called ``step`` or like a
            label.
        TypeError: at a call, a value is no number; its name is given.

    Example:
        >>> import tempfile
        >>> import fngrad.logging as logging
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with logging.jsonl(f"{folder}/metrics.jsonl") as logger:
        ...         logger(10, {"loss": 0.5})
        ...     logging.read_jsonl(f"{folder}/metrics.jsonl")
        [{'step': 10, 'loss': 0.5}]
    """
    labels = dict(labels or {})
    if "step" in labels:
        raise ValueError(f"need labels that are not called 'step', got {labels}")
    check_local("path", path)
    file = open_to_append(Path(path), '{"step": ')

    def write(step: int, values: Mapping[str, Any]) -> None:
        if labels.keys() & values.keys():
            raise ValueError(f"need values not called as {labels}, got {list(values)}")
        line = json.dumps(_record(step, values) | labels, allow_nan=False)
        file.write(f"{line}\n".encode())
        file.flush()

    return FileLogger(write, file.close)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the records that `jsonl` wrote, without a torn last line.

    Raises:
        ValueError: a whole line is not a JSON object; its number is given.
    """
    *lines, _torn = Path(path).read_text(encoding="utf-8").split("\n")
    records = [_parse(line, i, path) for i, line in enumerate(lines, 1)]
    return [
        {name: from_json_number(value) for name, value in record.items()}
        for record in records
    ]


def cut_jsonl(path: str | Path, step: int) -> None:
    """Remove the records of steps after ``step``, in one atomic write.

    A torn last line goes too. So a run that goes on from a checkpoint writes no step
    a second time.

    Raises:
        ValueError: a whole line is not a JSON object; nothing is cut.
        OSError: the folder cannot be written; the file stands.
    """
    path = Path(path)
    content = path.read_text(encoding="utf-8")
    *lines, _torn = content.split("\n")
    records = [_parse(line, i, path) for i, line in enumerate(lines, 1)]
    kept = zip(lines, records, strict=True)
    left = "".join(f"{line}\n" for line, record in kept if record["step"] <= step)
    if left != content:
        write_atomically(path, left)


def csv(path: str | Path) -> FileLogger:
    """Log to a table: a header, then a row a record; a missing value is empty.

    The first record makes the header ``step, ...``. A record with new names widens
    it: the file is written anew with more columns, in one atomic step. Rows are
    flushed; an existing file is appended to, after a torn last line is cut off.

    Args:
        path: the file; its folder is made.

    Raises:
        OSError: the file cannot be written.
        ValueError: the existing file is no such table, and is left as it is; at a
            call, a value is called ``step``.
        TypeError: at a call, a value is no number; its name is given.
    """
    check_local("path", path)
    path = Path(path)
    file = open_to_append(path, "step")
    header = _header(path)

    def widen(names: list[str]) -> None:
        nonlocal file, header
        header = header + names
        file.close()
        with path.open(newline="", encoding="utf-8") as old:
            rows = list(csv_format.DictReader(old, restval=""))
        lines = [_csv_line(header)]
        lines += [_csv_line([row.get(name, "") for name in header]) for row in rows]
        write_atomically(path, "".join(lines))
        file = path.open("ab")

    def write(step: int, values: Mapping[str, Any]) -> None:
        record = _record(step, values)
        new_names = [name for name in record if name not in header]
        if new_names:
            widen(new_names)
        row = [from_json_number(record.get(name, "")) for name in header]
        file.write(_csv_line(row).encode())
        file.flush()

    return FileLogger(write, lambda: file.close())


def tensorboard(folder: str | Path) -> FileLogger:
    """Log to TensorBoard event files, without TensorFlow: a curve a name.

    Args:
        folder: where ``tensorboard --logdir`` looks; it is made.

    Raises:
        ImportError: tensorboardX is missing (``pip install "fngrad[tensorboard]"``).
        TypeError: at a call, a value is no number; its name is given.
    """
    writer = import_extra("tensorboardX", "tensorboard").SummaryWriter(str(folder))

    def write(step: int, values: Mapping[str, Any]) -> None:
        record = _record(step, values)
        for name in values:
            writer.add_scalar(name, from_json_number(record[name]), step)

    return FileLogger(write, writer.close)


def _record(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    if "step" in values:
        raise ValueError(f"need values that are not called 'step', got {list(values)}")
    return {"step": int(step), **{name: _number(name, values[name]) for name in values}}


def _number(name: str, value: Any) -> Any:
    number = to_json(value, name)
    if isinstance(value, str) or not isinstance(from_json_number(number), int | float):
        raise TypeError(f"need a number at {name!r}, got {value!r}")
    return number


def _parse(line: str, number: int, path: str | Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"need a JSON object a line, got {line[:40]!r} at {path}:{number}"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"need a JSON object, got {line[:40]!r} at {path}:{number}")
    return record


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv_format.reader(file), [])


def _csv_line(row: list[Any]) -> str:
    text = io.StringIO()
    csv_format.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()
