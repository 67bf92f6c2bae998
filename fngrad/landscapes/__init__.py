"""Landscapes: functions with known minima, descents, slices of losses, plots."""

from fngrad.landscapes.descent import descend
from fngrad.landscapes.functions import (
    CATALOG,
    Landscape,
    beale,
    himmelblau,
    monkey_saddle,
    quadratic,
    rastrigin,
    rosenbrock,
    two_minima,
)
from fngrad.landscapes.plotting import plot
from fngrad.landscapes.slices import (
    Plane,
    Trajectory,
    filter_direction,
    line_values,
    plane_values,
    principal_plane,
    random_plane,
)

__all__ = [
    "CATALOG",
    "Landscape",
    "Plane",
    "Trajectory",
    "beale",
    "descend",
    "filter_direction",
    "himmelblau",
    "line_values",
    "monkey_saddle",
    "plane_values",
    "plot",
    "principal_plane",
    "quadratic",
    "random_plane",
    "rastrigin",
    "rosenbrock",
    "two_minima",
]


def __dir__() -> list[str]:
    return sorted(__all__)
