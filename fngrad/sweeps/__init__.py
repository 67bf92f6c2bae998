"""Sweeps: many trainings as one compiled program.

`sweep` trains at every point with every key; `grid`, `random` and `sobol` make the
points; `table`, `compare` and `pictures` show the results.
"""

from typing import TYPE_CHECKING

import fngrad.sweeps.results.pictures as pictures
from fngrad.sweeps.results.result import Failure, SweepResult
from fngrad.sweeps.results.saved import load
from fngrad.sweeps.results.statistics import Comparison, Summary
from fngrad.sweeps.results.tables import Table, best_point, compare, summary, table
from fngrad.sweeps.running.runner import sweep
from fngrad.sweeps.searching.learning_rate_range_test import (
    RangeTest,
    learning_rate_range_test,
)
from fngrad.sweeps.searching.optuna_search import search
from fngrad.sweeps.searching.points import (
    Range,
    choice,
    grid,
    log_uniform,
    random,
    sobol,
    uniform,
)
from fngrad.sweeps.searching.population_based_training import (
    Population,
    lineage,
    population_based_training,
)
from fngrad.sweeps.searching.successive_halving import (
    Halving,
    rungs,
    successive_halving,
)

__all__ = [
    "Comparison",
    "Failure",
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
    "load",
    "log_uniform",
    "pictures",
    "population_based_training",
    "random",
    "rungs",
    "search",
    "sobol",
    "successive_halving",
    "summary",
    "sweep",
    "table",
    "uniform",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
