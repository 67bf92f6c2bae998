"""`fngrad report`: one page of HTML about a run or a sweep."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fngrad.commands.pages as pages
import fngrad.commands.run_records as run_records
import fngrad.commands.show as show
import fngrad.commands.texts as texts
import fngrad.sweeps.results.saved as saved
from fngrad.commands.options import Output
from fngrad.commands.pages import Picture, Section
from fngrad.commands.run_records import RunRecord
from fngrad.files.atomic_writes import write_atomically
from fngrad.logging.history import History
from fngrad.logging.plots import png
from fngrad.logging.quantities import by_quantity, is_norm
from fngrad.sweeps.results import pictures, tables
from fngrad.sweeps.results.result import SweepResult

_ROWS = 20  # of the table of a sweep


def report(folder: Path, /, *, output: Output = None) -> int:
    """Write one page of HTML about a run or a sweep; it opens offline.

    The page holds config, environment, metrics, curves, norms, where the time went,
    autopsy and results if there are any, other pictures in the folder, and the tables
    and pictures of sweeps whose folder it is or that are inside it.

    Args:
        folder: of the run or the sweep.
        output: the page; by default report.html in the folder.
    """
    path = output or folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page_of(folder))
    print(path)
    return 0


def page_of(folder: Path) -> str:
    """Return the page of a run or a sweep.

    Raises:
        ValueError: if it is neither the folder of a run nor that of a sweep.
        FileNotFoundError: if it is the folder of a sweep that is not finished.
    """
    sweeps = [path.parent for path in sorted(folder.glob(f"*/{saved.NAME}"))]
    if (folder / "sweep.json").is_file() or (folder / saved.NAME).is_file():
        sweeps.insert(0, folder)
    if sweeps and not run_records.is_run(folder):
        title, status, sections = folder.resolve().name, "", []
    else:
        record = run_records.read_run(folder)
        title, status, sections = record.name, record.status, _run(record)
    for path in sweeps:
        is_named = path != folder and path.name != "sweep"
        name = f"sweep {path.name}" if is_named else "sweep"
        sections[2:2] = _sweep(name, saved.load(path))  # below the autopsy
    return pages.page(title, str(folder.resolve()), status, sections)


def _run(record: RunRecord) -> list[Section | list[Section]]:
    """Return the sections of a run, the most important first."""
    history, facts = record.history, record.manifest
    groups = by_quantity(history)
    constant = [n for n in history if _is_constant(history, n)]
    varying = {
        quantity: [name for name in group if name not in constant]
        for quantity, group in groups.items()
    }
    norms = {q: g for q, g in varying.items() if is_norm(q)}
    curves = {q: g for q, g in varying.items() if not (is_norm(q) or q == "is_finite")}
    text = ", ".join(f"{n} = {history.last(n):.4g}" for n in constant)
    seconds = (facts.get("seconds") or {}).items()
    spent = [(part, value, f"{value:.2f} s") for part, value in seconds if value]
    config = [[name, str(value)] for name, value in record.config.items()]
    return [
        [
            Section("run", pages.pairs(_facts(record))),
            Section("metrics", _metrics(record)),
        ],
        Section("autopsy", pages.preformatted(str(facts.get("autopsy") or ""))),
        Section("results", pages.pairs(show.results(record))),
        Section(
            "curves",
            pages.pictures(list(_drawn(history, curves)))
            + pages.note(f"constant: {text}" if text else ""),
        ),
        Section("norms", pages.pictures(list(_drawn(history, norms)))),
        Section("pictures", _found(record)),
        [
            Section("where the time went", pages.shares(spent)),
            Section("config", pages.pairs(config)),
        ],
        Section("environment", pages.pairs(show.environment(record))),
    ]


def _facts(record: RunRecord) -> list[list[str]]:
    rows = show.facts(record)
    if record.steps:
        rows.append(["checkpoints", ", ".join(map(str, record.steps))])
    return rows


def _metrics(record: RunRecord) -> str:
    rows = []
    for name in record.history:
        if name == "is_finite":
            continue
        best = record.best(*run_records.parsed_metric(name))
        cells = [texts.cell(best[0]), str(best[1])] if best else ["", ""]
        rows.append([name, texts.cell(record.last(name)), *cells])
    table = pages.table(["metric", "last", "best", "at step"], rows)
    return table + pages.note(show.thinned(record))


def _is_constant(history: History, name: str) -> bool:
    curve = history[name]
    return len(curve) > 1 and bool(np.all(curve == curve[0])) and name != "is_finite"


def _drawn(history: History, groups: dict[str, list[str]]) -> Iterator[Picture]:
    for names in groups.values():
        if names:
            yield Picture(f"curves of {', '.join(names)}", png(history.plot(*names)))


def _found(record: RunRecord) -> str:
    """Return the pictures in the folder, without those that the page draws anew."""
    drawn = {"curves"} if record.history else set()
    if any(record.path.glob(f"*/{saved.NAME}")):
        drawn |= {"curves", "sensitivity", "heat_map", "parallel_coordinates"}
    paths = [
        path for path in sorted(record.path.glob("*.png")) if path.stem not in drawn
    ]
    found = [Picture(path.stem, path.read_bytes()) for path in paths]
    wide = [picture for picture in found if _is_wide(picture.png)]
    narrow = [picture for picture in found if picture not in wide]
    return pages.pictures(narrow) + pages.pictures(wide, is_wide=True)


def _is_wide(png: bytes) -> bool:
    """Return whether a picture needs the width of the page, by its PNG header."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return width > 1.7 * height


def _sweep(name: str, result: SweepResult) -> list[Section]:
    """Return the sections of a sweep: the ranking and its pictures."""
    table = tables.table(result)
    head, *rows = table.cells()
    points, seeds = result.diverged_at.shape
    lost = int(np.sum(result.diverged_at >= 0))
    metric, mode = result.notes["metric"]
    order = "smallest" if mode == "min" else "largest"
    lines = [
        f"{len(rows) - _ROWS} more points" if len(rows) > _ROWS else "",
        f"{metric}, {order} median first; {points} points, {seeds} seeds, "
        f"{lost} of {points * seeds} lanes diverged",
        *table.summary.warnings,
    ]
    ranking = pages.table(head, rows[:_ROWS]) + "".join(map(pages.note, lines))
    columns = _columns(result)
    drawn = pages.pictures([Picture(t, png(p)) for t, p in _pictures(result, columns)])
    if len(columns) > 2:
        every = Picture("all columns", png(pictures.parallel_coordinates(result)))
        drawn += pages.pictures([every], is_wide=True)
    return [Section(f"{name}: ranking", ranking), Section(f"{name}: pictures", drawn)]


def _columns(result: SweepResult) -> list[str]:
    """Return the columns with one value per point that are not constant."""
    return [
        name
        for name, column in result.points.items()
        if np.ndim(column) == 1 and len(set(map(str, column))) > 1
    ]


def _pictures(result: SweepResult, columns: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the pictures that the columns of a sweep allow, with their titles."""
    numbers = [n for n in columns if np.asarray(result.points[n]).dtype.kind in "iuf"]
    words = [name for name in columns if name not in numbers]
    by = words[0] if words else None
    for name in numbers[:4]:
        yield f"sensitivity to {name}", pictures.sensitivity(result, name, by=by)
    metric, _ = result.notes["metric"]
    if np.ndim(result.history[metric]) == 3:
        yield f"curves of {metric}", pictures.loss_curves(result, by=by)
    if len(columns) > 1:
        first, second = columns[:2]
        yield f"{first} and {second}", pictures.heat_map(result, first, second)
