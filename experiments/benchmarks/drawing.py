"""How long does the picture of a long run take?

Claim: `History.plot` of a million points takes about a second, and writing it to a file
no longer than for ten thousand, since matplotlib gets only some thousands of points.

Command:  python -m experiments.benchmarks.drawing
Minutes:  under one on two cores.
Expected: 0.04, 0.05 and 0.23 s to draw 10,000, 100,000 and a million points, and about
          0.6 s to write each (two busy cores).

Sizes take turns, and medians are compared.
"""

import tempfile
from pathlib import Path

import numpy as np

import fngrad.logging.plots as plots
from experiments.benchmarks.timing import interleave, seconds, table
from fngrad.logging.history import History

SIZES = (10_000, 100_000, 1_000_000)
REPEATS = 5


def noisy_loss(size: int) -> History:
    """Return the history of a loss that falls, with noise."""
    steps = np.arange(1, size + 1)
    noise = np.random.default_rng(0).exponential(size=size)
    history = History()
    history.extend(steps, {"loss": np.exp(-5 * steps / size) + 0.05 * noise})
    return history


def main(sizes: tuple[int, ...] = SIZES, repeats: int = REPEATS) -> None:
    """Print the median seconds of drawing and of writing, by the number of points."""
    histories = {f"{size} points": noisy_loss(size) for size in sizes}
    figures = {name: history.plot() for name, history in histories.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.png"
        for title, work in (
            ("History.plot", lambda name: histories[name].plot()),
            ("writing", lambda name: plots.write(figures[name], path)),
        ):
            cases = {
                name: lambda name=name, work=work: seconds(lambda: work(name))
                for name in histories
            }
            print(title)
            print(table(interleave(cases, repeats), next(iter(cases)), "ms"), "\n")


if __name__ == "__main__":
    main()
