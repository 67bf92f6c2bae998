"""Sweeps: many trainings as one compiled program.

`sweep` trains at every point with every key; `grid`, `random` and `sobol` make points.
"""

from fngrad.sweeps.points import (
    Range,
    choice,
    grid,
    log_uniform,
    random,
    sobol,
    uniform,
)
from fngrad.sweeps.result import SweepResult
from fngrad.sweeps.runner import sweep

__all__ = [
    "Range",
    "SweepResult",
    "choice",
    "grid",
    "log_uniform",
    "random",
    "sobol",
    "sweep",
    "uniform",
]
