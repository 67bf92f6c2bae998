"""Loggers that write files, learning curves, the progress bar, the run folder."""

import fngrad.logging.plots as plots
from fngrad.logging.progress import ProgressBar
from fngrad.logging.run_folder import RunFolder
from fngrad.logging.run_names import new_run
from fngrad.logging.writers import (
    FileLogger,
    Logger,
    csv,
    jsonl,
    read_jsonl,
    tensorboard,
)

__all__ = [
    "FileLogger",
    "Logger",
    "ProgressBar",
    "RunFolder",
    "csv",
    "jsonl",
    "new_run",
    "plots",
    "read_jsonl",
    "tensorboard",
]


def __dir__() -> list[str]:
    return sorted(__all__)
