"""`fngrad show`: everything that is recorded in one run folder."""

from pathlib import Path

import numpy as np

import fngrad.commands.run_records as run_records
import fngrad.commands.texts as texts
import fngrad.programs.text_tables as text_tables
from fngrad.commands.run_records import RunRecord
from fngrad.logging.differences import flatten
from fngrad.programs.text_tables import short_text

_ENVIRONMENT = (
    *("command", "cwd", "python", "platform", "backend", "device_kind"),
    *("device_count", "process_count", "float32_products", "loop", "loop_reason"),
    *("seed", "data"),
)


def show(run: Path, /, *, json: bool = False) -> int:
    """Print a run: status, config, environment, metrics, where the time went.

    Args:
        run: its folder.
        json: print JSON.
    """
    record = run_records.read_run(run)
    print(texts.json_text(as_json(record)) if json else text(record))
    return 0


def text(record: RunRecord) -> str:
    """Return the sections of a run as text, each with its title."""
    parts = {"": text_tables.table(facts(record)), **sections(record)}
    if record.history:
        lines = (record.history.summary(), thinned(record))
        parts["metrics"] = "\n".join(filter(None, lines))
    if record.manifest.get("autopsy"):
        parts["autopsy"] = str(record.manifest["autopsy"])
    return "\n\n".join(
        f"{title}\n{body}" if title else body for title, body in parts.items()
    )


def facts(record: RunRecord) -> list[list[str]]:
    """Return path, status, times and steps, as rows of a name and a value."""
    reason = f": {record.reason}" if record.reason not in ("", record.status) else ""
    resumed = [texts.moment(str(call.get("time"))) for call in record.resumed]
    starts = f"{len(resumed) + 1}, the environment is that of the last"
    rows = [
        ["run", str(record.path)],
        ["status", f"{record.status}{reason}"],
        ["started", texts.moment(record.started)],
        ["resumed", ", ".join(resumed)],
        ["starts", starts if resumed else ""],
        ["duration", texts.duration(record.seconds)],
        ["steps", str(record.step)],
    ]
    return [row for row in rows if row[1] not in ("", "-", "0")]


def sections(record: RunRecord) -> dict[str, str]:
    """Return config, results, environment and the rest as text, by title."""
    tables = {
        "config": [[key, str(value)] for key, value in record.config.items()],
        "results": results(record),
        "environment": environment(record),
        "checkpoints": [
            ["folder", str(record.checkpoints)],
            ["steps", ", ".join(map(str, record.steps))],
        ]
        if record.checkpoints
        else [],
        "where the time went": time_spent(record),
    }
    return {title: text_tables.table(rows) for title, rows in tables.items() if rows}


def environment(record: RunRecord) -> list[list[str]]:
    """Return what the last start ran on, and the first if that was something else."""
    found, first = record.facts, record.manifest

    def shown(name: str) -> str:
        is_other = name in first and first[name] != found[name]
        return f"{found[name]}{f' (at first {first[name]})' if is_other else ''}"

    rows = [[n, shown(n)] for n in _ENVIRONMENT if found.get(n) is not None]
    versions = found.get("versions") or {}
    rows += [[n, str(v)] for n, v in versions.items() if v is not None]
    git = found.get("git")
    if git:
        changed = ", with changes" if git.get("dirty") else ""
        rows.append(["git", f"{git.get('commit')}{changed}"])
    names = {**(found.get("flags") or {}), **(found.get("environment") or {})}
    rows += [[name, str(value)] for name, value in names.items() if value]
    return rows


def thinned(record: RunRecord) -> str:
    """Return how many steps of `fngrad.fit` have records, if some have none."""
    names = [n for n in record.history if not n.startswith("val/") and "[" not in n]
    steps = max((record.history.steps(n) for n in names), key=len, default=np.array([]))
    gaps = np.diff(steps) if len(steps) > 1 else steps
    if "stopped" not in record.manifest or not np.any(gaps > 1):
        return ""
    return (
        f"metrics.jsonl has records of {len(steps)} of {record.step} steps: "
        "fngrad.fit(log_every=1) would record all"
    )


def results(record: RunRecord) -> list[list[str]]:
    """Return what an experiment recorded at its end, as rows of a name and a value."""
    found = record.manifest.get("results")
    leaves = flatten(found, "results") if found else {}
    return [[k.removeprefix("results."), short_text(x)] for k, x in leaves.items()]


def time_spent(record: RunRecord) -> list[list[str]]:
    """Return the seconds of the last call by part, with their shares."""
    seconds = record.manifest.get("seconds") or {}
    total = sum(seconds.values())
    return [
        [part, f"{value:.2f} s", f"{100 * value / total:.0f} %"]
        for part, value in seconds.items()
        if value and total
    ]


def as_json(record: RunRecord) -> dict[str, object]:
    """Return the same in JSON's types."""
    scalars = {}
    for name in record.history:
        best = record.best(*run_records.parsed_metric(name))
        scalars[name] = {
            "records": len(record.history[name]),
            "last": record.last(name),
            "best": best and best[0],
            "best_step": best and best[1],
        }
    return {
        "name": record.name,
        "path": record.path,
        "status": record.status,
        "reason": record.reason,
        "duration": record.seconds,
        "step": record.step,
        "config": record.config,
        "metrics": scalars,
        "checkpoints": record.steps,
        "manifest": record.manifest,
    }
