"""Sweeps: many trainings as one compiled program.

`sweep` trains at every point with every key; `grid`, `random` and `sobol` make points.
"""

import fngrad.sweeps.pictures as pictures
from fngrad.sweeps.halving import Halving, rungs, successive_halving
from fngrad.sweeps.points import (
    Range,
    choice,
    grid,
    log_uniform,
    random,
    sobol,
    uniform,
)
from fngrad.sweeps.population import Population, lineage, population_based_training
from fngrad.sweeps.range_test import RangeTest, learning_rate_range_test
from fngrad.sweeps.result import SweepResult
from fngrad.sweeps.runner import sweep
from fngrad.sweeps.statistics import Comparison, Summary
from fngrad.sweeps.tables import Table, best_point, compare, summary, table

__all__ = [
    "Comparison",
    "Halving",
    "Population",
    "Range",
    "RangeTest",
    "Summary",
    "SweepResult",
    "Table",
    "best_point",
    "choice",
    "compare",
    "grid",
    "learning_rate_range_test",
    "lineage",
    "log_uniform",
    "pictures",
    "population_based_training",
    "random",
    "rungs",
    "sobol",
    "successive_halving",
    "summary",
    "sweep",
    "table",
    "uniform",
]
