"""`fngrad compare`: runs side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fngrad.commands.run_records as run_records
import fngrad.commands.texts as texts
import fngrad.logging.plots as plots
import fngrad.programs.text_curves as text_curves
import fngrad.programs.text_tables as text_tables
from fngrad.commands.options import Output
from fngrad.commands.run_records import RunRecord

_MOST = 12  # panels


def compare(
    runs: tuple[Path, ...],
    /,
    *,
    metric: tuple[str, ...] = (),
    output: Output = None,
    all: bool = False,
) -> int:
    """Print the configs of runs side by side, their metrics and their curves.

    A star marks the keys of the config that differ.

    Args:
        runs: their folders.
        metric: what to compare, such as val/loss; by default the loss and everything
            that was evaluated.
        output: a picture to draw the curves into (.png, .pdf, .svg) instead of the
            terminal.
        all: show the keys that do not differ too.
    """
    if not runs:
        raise ValueError("need at least one run folder, got none")
    records = run_records.read_named(runs)
    names = metric or default_metrics(records)
    print(configs(records, is_whole=all))
    print()
    print(measured(records, names))
    if output:
        plots.write(figure(records, names), output)
        print(f"\ncurves: {output}")
    else:
        for name in names:
            print(f"\n{name}\n{text_curves.draw(curves(records, name))}")
    return 0


def default_metrics(records: Sequence[RunRecord]) -> list[str]:
    """Return the loss and the evaluations that any of the runs recorded."""
    found = dict.fromkeys(
        run_records.unlabelled(name) for record in records for name in record.history
    )
    chosen = [n for n in found if n == "loss" or n.startswith("val/")]
    return (chosen or list(found))[:_MOST]


def configs(records: Sequence[RunRecord], *, is_whole: bool) -> str:
    """Return the table of configs: one row per key, one column per run."""
    different = run_records.differing(records)
    keys = dict.fromkeys(key for record in records for key in record.config)
    shown = [key for key in keys if is_whole or key in different]
    rows = [["", "", *(record.name for record in records)]]
    rows.append(["", "status", *(record.status for record in records)])
    rows.append(["", "steps", *(str(record.step) for record in records)])
    rows.append(["", "duration", *(texts.duration(r.seconds) for r in records)])
    rows += [
        [
            "*" if key in different else "",
            key,
            *(_value(record, key) for record in records),
        ]
        for key in shown
    ]
    equal = len(keys) - len(different)
    hidden = f"\n{equal} equal keys: --all shows them" if equal and not is_whole else ""
    return text_tables.table(rows) + hidden


def measured(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Return the table of the last and best values: one row per metric and kind."""
    rows = [["metric", *(record.name for record in records)]]
    for text in names:
        name, mode = run_records.parsed_metric(text)
        rows.append([f"{name} last", *(texts.cell(r.last(name)) for r in records)])
        if mode:
            best = [record.best(name, mode) for record in records]
            cells = [f"{b[0]:.4g} at {b[1]}" if b else "-" for b in best]
            rows.append([f"{name} best", *cells])
    return text_tables.table(rows)


def curves(records: Sequence[RunRecord], text: str) -> dict[str, Any]:
    """Return a metric's curves by run, and by label where a run has several."""
    name, _ = run_records.parsed_metric(text)
    found = {}
    for record in records:
        for own in record.history:
            if name in (own, run_records.unlabelled(own)):
                label = own.removeprefix(run_records.unlabelled(own))
                curve = (record.history.steps(own), record.history[own])
                found[f"{record.name}{label}"] = curve
    return found


def figure(records: Sequence[RunRecord], names: Sequence[str]) -> Any:
    """Return the curves of runs as a figure, with a panel per metric.

    Raises:
        ImportError: if matplotlib is missing (``pip install "fngrad[plot]"``).
        ValueError: if no run recorded any of the metrics.
    """
    panels = {
        name: {label: [curve] for label, curve in curves(records, name).items()}
        for name in names
    }
    return plots.figure({name: panel for name, panel in panels.items() if panel})


def _value(record: RunRecord, key: str) -> str:
    return texts.cell(record.config[key]) if key in record.config else "absent"
