"""`fngrad runs`: a table of the runs in a folder."""

import json as json_format
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fngrad.commands.run_records as run_records
import fngrad.commands.texts as texts
import fngrad.programs.text_tables as text_tables
from fngrad.commands.run_records import RunRecord

_MOST = 8  # columns of the config


def runs(
    folder: Path = Path("runs"),
    /,
    *,
    metric: str | None = None,
    sort: str = "started",
    reverse: bool = False,
    where: tuple[str, ...] = (),
    json: bool = False,
) -> int:
    """List the runs at or below a folder, with what differs in their configs.

    A run that no process works on and whose end is not recorded was killed: it is
    listed as failed. One that a callback ended by fngrad.STOP is completed. The
    duration is that from the first start to the end. The exit status is 1 if no run is
    found or one cannot be read.

    Args:
        folder: where to look.
        metric: whose last and best value are shown, such as val/loss, or
            val/score:max where the name does not say which way is better.
        sort: by name, status, started, duration, step, last, best (the best first) or
            a key of the config.
        reverse: list in reverse order.
        where: conditions on the config, the name or the status, such as
            learning_rate=0.1 or status!=running; all must hold.
        json: print JSON.
    """
    records, problems = run_records.read_runs(folder)
    for problem in problems:
        print(f"fngrad: {problem}", file=sys.stderr)
    records = [r for r in records if all(holds(r, text) for text in where)]
    chosen = metric or run_records.default_metric(records)
    rows = [row_of(record, chosen) for record in sorted_by(records, sort, chosen)]
    rows = rows[::-1] if reverse else rows
    if json:
        print(texts.json_text(rows))
    elif rows:
        print(table(rows, run_records.varying(records), chosen))
    else:
        print(f"no runs in {str(folder)!r}", file=sys.stderr)
    return 1 if problems or not rows else 0


def row_of(record: RunRecord, metric: str | None) -> dict[str, Any]:
    """Return the entries of the table and of the JSON for a run."""
    name, mode = run_records.parsed_metric(metric or "")
    best = record.best(name, mode)
    return {
        "name": record.name,
        "path": record.path,
        "status": record.status,
        "reason": record.reason,
        "started": record.started,
        "duration": record.seconds,
        "step": record.step,
        "metric": metric and name,
        "last": record.last(name),
        "best": best and best[0],
        "best_step": best and best[1],
        "checkpoints": record.steps,
        "config": record.config,
    }


def sorted_by(
    records: Sequence[RunRecord], key: str, metric: str | None
) -> list[RunRecord]:
    """Return runs in the order of a column or of a key of the config.

    Runs without a value are last.

    Raises:
        ValueError: if no run has such a column or key.
    """
    _, mode = run_records.parsed_metric(metric or "")
    sign = -1.0 if mode == "max" else 1.0

    def value(record: RunRecord) -> Any:
        row = row_of(record, metric)
        found = row[key] if key in row else record.config.get(key)
        return sign * found if key == "best" and found is not None else found

    known = {*row_of(records[0], metric), *records[0].config} if records else {key}
    known |= {name for record in records for name in record.config}
    if key not in known:
        raise ValueError(f"need --sort as one of {sorted(known)}, got {key!r}")
    return sorted(records, key=lambda record: _order(value(record)))


def holds(record: RunRecord, text: str) -> bool:
    """Return whether a condition such as ``rate=0.1`` or ``rate!=0.1`` holds.

    Raises:
        ValueError: if it has another form.
    """
    key, sign, wanted = text.partition("!=" if "!=" in text else "=")
    if not (key and sign):
        raise ValueError(f"need conditions key=value or key!=value, got {text!r}")
    row = {**record.config, "name": record.name, "status": record.status}
    is_equal = key in row and _equals(row[key], wanted)
    return is_equal is (sign == "=")


def table(rows: Sequence[dict[str, Any]], keys: list[str], metric: str | None) -> str:
    """Return the table: one row per run, and one column per key of the config."""
    name, mode = run_records.parsed_metric(metric or "")
    shown = keys[:_MOST]
    measured = [f"{name} last"] if metric else []
    measured += [f"{name} best", "at step"] if metric and mode else []
    head = ["name", "status", "started", "duration", "step", *measured, *shown]
    lines = [head]
    for row in rows:
        values = [row["last"]] if metric else []
        values += [row["best"], row["best_step"]] if metric and mode else []
        lines.append(
            [
                row["name"],
                row["status"],
                texts.moment(row["started"]),
                texts.duration(row["duration"]),
                str(row["step"]),
                *map(texts.cell, values),
                *(texts.cell(row["config"].get(key)) for key in shown),
            ]
        )
    left = len(keys) - len(shown)
    more = f"\n{left} more keys differ: fngrad compare" if left else ""
    return text_tables.table(lines, left=3) + more


def _order(value: Any) -> tuple[int, Any]:
    if isinstance(value, bool | int | float) and not math.isnan(value):
        return (0, value)
    return (2, "") if value is None or value == "" else (1, str(value))


def _equals(value: Any, text: str) -> bool:
    if str(value) == text:
        return True
    try:
        return bool(value == json_format.loads(text))
    except ValueError:
        return False
