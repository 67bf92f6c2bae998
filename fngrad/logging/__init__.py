"""Loggers of files and of experiment trackers, curves, progress, the run folder."""

import fngrad.logging.plots as plots
from fngrad.logging.histograms import Histogram, histogram
from fngrad.logging.media import MediaLogger
from fngrad.logging.mlflow_runs import mlflow
from fngrad.logging.progress import ProgressBar
from fngrad.logging.run_folder import RunFolder
from fngrad.logging.run_names import new_run
from fngrad.logging.tensorboard_events import tensorboard
from fngrad.logging.tracked_runs import trackio, wandb
from fngrad.logging.writers import FileLogger, Logger, csv, jsonl, read_jsonl

__all__ = [
    "FileLogger",
    "Histogram",
    "Logger",
    "MediaLogger",
    "ProgressBar",
    "RunFolder",
    "csv",
    "histogram",
    "jsonl",
    "mlflow",
    "new_run",
    "plots",
    "read_jsonl",
    "tensorboard",
    "trackio",
    "wandb",
]


def __dir__() -> list[str]:
    return sorted(__all__)
