"""What every experiment leaves: a dated run folder, figures, a table, its programs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fngrad as fg
import fngrad.logging.manifest as facts
import fngrad.programs.text_tables as text_tables
from fngrad.programs.optional_imports import import_extra

FOLDER = Path(__file__).parent.name


def new_folder(config: Any, data: fg.Dataset | None = None) -> fg.logging.RunFolder:
    """Make ``config.runs / date-time``, with config.json and manifest.json in it."""
    fingerprint = None if data is None else data.fingerprint()
    path = fg.logging.new_run(config.runs)
    return fg.logging.RunFolder(path, config=config, data=fingerprint)


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches, that needs no display."""
    figure = import_extra("matplotlib.figure", "plot").Figure
    return figure((width, height), layout="constrained")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text below a head, the first column aligned to the left."""
    return text_tables.table([head, *rows], left=1)


def finish(folder: fg.logging.RunFolder, results: Any, **figures: Any) -> None:
    """Write results into the manifest and figures beside it; print the folder."""
    if not fg.distributed.processes().is_first:
        return
    folder.update_manifest(results=results, ended=facts.now())
    for name, figure in figures.items():
        figure.savefig(folder.path / f"{name}.png", dpi=120)
    print(f"run folder: {folder.path}")


def run_cli(main: Any, config: Any, description: str | None) -> None:
    """Read a config from the command line, and run with it.

    The help shows the docstring's first paragraph; ``python -m experiments`` the rest.
    """
    summary = (description or "").partition("\n\n")[0]
    tyro = import_extra("tyro", "cli")
    chosen = tyro.cli(config, prog=_command(sys.argv[0]), description=summary)
    keep_compiled(sys.argv[0])
    main(chosen)


def keep_compiled(path: str) -> None:
    """Keep what an experiment's file compiles for its next run; a benchmark keeps none.

    ``JAX_ENABLE_COMPILATION_CACHE=false`` turns this off.
    """
    if "benchmarks" in Path(path).parts:
        return
    try:
        fg.cache_compilations()
    except OSError as error:
        print(f"compiled programs are not kept: {error}", file=sys.stderr)


def _command(path: str) -> str | None:
    """Return the command of an experiment's file."""
    parts = Path(path).with_suffix("").parts
    if FOLDER not in parts:
        return None
    start = len(parts) - 1 - parts[::-1].index(FOLDER)
    return f"python -m {'.'.join(parts[start:])}"
