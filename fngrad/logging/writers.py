"""Loggers that write to files.

A *logger* is a function ``logger(step, values)`` of an int and a dict of floats. One
that owns a file also has ``close()``, and one that can remove records ``cut(step)``.
"""

import csv as csv_format
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fngrad.files.json_values import from_json_number, to_json
from fngrad.files.local_paths import check_local
from fngrad.logging.lines import LineFile

_LOSSLESS = "surrogateescape"  # keeps the bytes that another program wrote


class Logger(Protocol):
    """The type of a logger: takes a step and the metrics by name, as floats.

    `fngrad.fit` calls these methods too, if a logger has them:

    - ``configure(config)`` before the first step, if there is a ``config``;
    - ``cut(step)`` when the run returns to that step, after a rollback or from a
      checkpoint: later steps will be logged again;
    - ``images(step, images)`` and ``histograms(step, histograms)`` for the callbacks
      `fngrad.callbacks.images` and `fngrad.callbacks.histograms`;
    - ``close()`` at the end of a run that began; instead of it ``fail()`` if an
      exception ends the run, and ``kill()`` if one of the ``exit_signals`` does.

    A method of another signature is refused before the run begins.
    """

    def __call__(self, step: int, values: dict[str, Any], /) -> None: ...


@dataclasses.dataclass(frozen=True)
class FileLogger:
    """A logger that owns a file, and a context manager; closing twice is allowed.

    `fit` calls ``cut(step)`` when a run resumes from a checkpoint or rolls back to one:
    the records of later steps are removed, since these will be logged again.
    """

    write: Callable[[int, Mapping[str, Any]], None]
    close: Callable[[], None]
    cut: Callable[[int], None] | None = None
    name: str = "FileLogger"  # in messages

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        self.write(step, values)

    def __enter__(self) -> "FileLogger":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def jsonl(
    path: str | Path, labels: Mapping[str, str | int] | None = None
) -> FileLogger:
    """Log to a file with one JSON object per line: ``{"step": 10, "loss": 0.5}``.

    Every line is written immediately, so a killed run leaves at most one incomplete
    line. An existing file is appended to; an incomplete last line is removed first.
    Several loggers may share a file, in one process or in many. ``cut(step)`` removes
    the lines of later steps that have these labels.

    Args:
        path: the file; its folder is made.
        labels: further entries of every line, such as
            ``{"optimizer": "sgd", "seed": 3}`` if several runs share a file.

    Returns:
        The logger. Non-finite floats are written as the strings ``"NaN"``,
        ``"Infinity"`` and ``"-Infinity"``; `read_jsonl` turns them back.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the existing file is of another kind (it is left as it is), or a
            label is called ``step``; at a call, if a value is called ``step`` or has
            the name of a label.
        TypeError: at a call, if a value is not a number; its name is given.

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
    file = LineFile(path, ['{"step": '])

    def write(step: int, values: Mapping[str, Any]) -> None:
        if labels.keys() & values.keys():
            raise ValueError(
                f"need values with other names than the labels {list(labels)}, got "
                f"{list(values)}"
            )
        line = json.dumps(_record(step, values) | labels, allow_nan=False)
        with file.own():
            file.append(f"{line}\n".encode())

    def cut(step: int) -> None:
        with file.own():
            content = file.read()
            lines = _lines(content, file.path)
            left = [
                line
                for line, record in zip(
                    lines, _parse_all(lines, file.path), strict=True
                )
                if record["step"] <= step or not labels.items() <= record.items()
            ]
            if len(left) < len(lines):
                file.replace("".join(f"{line}\n" for line in left).encode())

    return FileLogger(write, file.close, cut, f"jsonl({str(path)!r})")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the records that `jsonl` wrote, without an incomplete last line.

    Raises:
        ValueError: if a line is not a JSON object with an integer ``step``; its number
            is given.
    """
    lines = _lines(Path(path).read_bytes(), path)
    return [
        {name: from_json_number(value) for name, value in record.items()}
        for record in _parse_all(lines, path)
    ]


def csv(path: str | Path) -> FileLogger:
    """Log to a table with a header and one row per record; missing values are empty.

    The first record defines the header ``step, ...``. A record with new names widens
    it: the file is rewritten with more columns, in one atomic step. Each row is written
    immediately; an existing file is appended to, and an incomplete last line is removed
    first. Several loggers may share a file, in one process or in many. ``cut(step)``
    removes the rows of later steps.

    Args:
        path: the file; its folder is made.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the existing file is not a table with distinct names of which
            ``step`` is the first (it is left as it is); at a call, if a value is called
            ``step``.
        TypeError: at a call, if a value is not a number; its name is given.
    """
    check_local("path", path)
    _check_table(Path(path))
    file = LineFile(path, ["step,", "step\n", "step\r"])
    headers: dict[int, list[str]] = {}  # by the version of the file

    def header() -> list[str]:
        if file.version not in headers:
            headers.clear()
            headers[file.version] = _header(file.path)
        return headers[file.version]

    def is_wide_enough(record: Mapping[str, Any]) -> bool:
        """Return whether all names have columns; if not, add them in a new file."""
        new = [name for name in record if name not in header()]
        if new:
            (_, *rows) = _rows(file.read()) or [[]]
            file.replace(
                _table([header() + new, *(row + [""] * len(new) for row in rows)])
            )
        return not new

    def write(step: int, values: Mapping[str, Any]) -> None:
        record = {in_utf8(n): x for n, x in _record(step, values).items()}
        while True:
            with file.own():
                if is_wide_enough(record):
                    row = [from_json_number(record.get(n, "")) for n in header()]
                    return file.append(_table([row]))

    def cut(step: int) -> None:
        with file.own():
            rows = _rows(file.read())
            left = rows[:1] + [row for row in rows[1:] if _step(row, file.path) <= step]
            if len(left) < len(rows):
                file.replace(_table(left))

    return FileLogger(write, file.close, cut, f"csv({str(path)!r})")


def floats_of(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record as Python numbers, without the step.

    Raises:
        ValueError: if a value is called ``step``.
        TypeError: if one is not a number; its name is given.
    """
    record = _record(step, values)
    return {name: from_json_number(record[name]) for name in values}


def in_utf8(name: str) -> str:
    """Return a name with what UTF-8 cannot encode, such as surrogates, escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _record(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    if "step" in values:
        raise ValueError(f"need values that are not called 'step', got {list(values)}")
    return {"step": int(step), **{name: _number(name, values[name]) for name in values}}


def _number(name: str, value: Any) -> Any:
    number = to_json(value, name)
    if isinstance(value, str) or not isinstance(from_json_number(number), int | float):
        raise TypeError(f"need a number at {name!r}, got {value!r}")
    return number


def _lines(content: bytes, path: str | Path) -> list[str]:
    """Return the lines of a text, without an incomplete last one."""
    try:
        *lines, _ = content[: content.rfind(b"\n") + 1].decode().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"need text in UTF-8, got {error} in {path}") from error
    return lines


def _parse_all(lines: list[str], path: str | Path) -> list[dict[str, Any]]:
    return [_parse(line, i, path) for i, line in enumerate(lines, 1)]


def _parse(line: str, number: int, path: str | Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"need one JSON object per line, got {line[:40]!r} at {path}:{number}"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"need a JSON object, got {line[:40]!r} at {path}:{number}")
    if type(record.get("step")) is not int:
        raise ValueError(
            "need an integer 'step' in every record, as fngrad.logging.jsonl writes "
            f"it, got {line[:40]!r} at {path}:{number}; take another folder or file"
        )
    return record


def _check_table(path: Path) -> None:
    """Raise if the first line of a file does not have distinct names."""
    if not path.exists():
        return
    try:
        names = _header(path)
    except (UnicodeDecodeError, csv_format.Error) as error:
        raise ValueError(
            f"need a file that begins with 'step,', got {error} in {path}"
        ) from error
    if len(set(names)) < len(names):
        raise ValueError(
            f"need distinct names in the first line of {path}, got {names}"
        )


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8", errors=_LOSSLESS) as file:
        return next(csv_format.reader(file), [])


def _rows(content: bytes) -> list[list[str]]:
    text = io.StringIO(content.decode("utf-8", _LOSSLESS), newline="")
    return list(csv_format.reader(text))


def _step(row: list[str], path: Path) -> int:
    try:
        return int(row[0])
    except (ValueError, IndexError):
        raise ValueError(
            f"need an integer step in each row of {path}, got {row}"
        ) from None


def _table(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv_format.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", _LOSSLESS)
