"""`fngrad plot`: the learning curves of a run as a picture."""

from pathlib import Path

import fngrad.commands.run_records as run_records
import fngrad.logging.plots as plots
from fngrad.commands.options import Output


def plot(run: Path, /, *, metric: tuple[str, ...] = (), output: Output = None) -> int:
    """Draw the learning curves of a run.

    Args:
        run: its folder.
        metric: what to draw; by default every scalar.
        output: the picture (.png, .pdf, .svg); by default plot.png in the folder,
            where `fngrad.fit` writes curves.png, of all steps.
    """
    record = run_records.read_run(run)
    path = output or record.path / "plot.png"
    print(plots.write(record.history.plot(*metric), path))
    return 0
