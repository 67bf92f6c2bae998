"""The hyperparameters of a search as Optuna's distributions.

An *axis* is one hyperparameter. The values of some are columns of numbers, which the
trainings of a batch share a program for; those of others are static and select the
program. Optuna keeps numbers, texts, bools and None as they are; other static values
are known to it by their text.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fngrad.programs.optional_imports import import_extra
from fngrad.programs.printed import recorded
from fngrad.sweeps.searching.points import Range, as_range, check_no_pair

KEPT = (bool, int, float, str, type(None))  # by Optuna, as categories


class Axis(NamedTuple):
    """A hyperparameter whose values are a column of points."""

    distribution: Any  # of Optuna
    dtype: np.dtype  # of the column


class StaticAxis(NamedTuple):
    """A hyperparameter that selects the program."""

    distribution: Any  # of Optuna
    values: dict[Any, Any]  # what Optuna suggests -> what the training gets
    count: int  # of the values


class Space(NamedTuple):
    """All hyperparameters of a search, by name."""

    axes: dict[str, Axis]
    static: dict[str, StaticAxis]

    @property
    def distributions(self) -> dict[str, Any]:
        """Those of Optuna, by name."""
        return {
            n: axis.distribution for n, axis in {**self.axes, **self.static}.items()
        }

    @property
    def programs(self) -> int:
        """The number of combinations of static values."""
        return int(np.prod([axis.count for axis in self.static.values()], dtype=int))

    def columns(self, suggested: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Return the points of some trials."""
        return {
            name: np.array([values[name] for values in suggested], axis.dtype)
            for name, axis in self.axes.items()
        }

    def combination(self, suggested: dict[str, Any]) -> dict[str, Any]:
        """Return the static values of a trial."""
        return {
            name: axis.values.get(suggested[name], suggested[name])
            for name, axis in self.static.items()
        }

    def describe(self) -> dict[str, str]:
        """Return the text of every distribution, by name."""
        return {name: repr(found) for name, found in self.distributions.items()}


def search_space(
    space: Mapping[str, Any], static: Mapping[str, Any] | None = None
) -> Space:
    """Return the axes of a search.

    Args:
        space: name -> `uniform`, `log_uniform`, `choice`, a list of numbers (a choice
            of them), one number, or a distribution of Optuna whose values are numbers.
        static: name -> a list of values of any type, or a distribution of Optuna.

    Raises:
        ValueError: if there is no axis in ``space``, a name is in both, a value is not
            finite, a range has no bounds, static values are missing or have one text,
            or values are a tuple of two numbers, which could be the bounds of a range.
        TypeError: if one of the two is not a mapping, or a value in ``space`` is not
            a number.

    Example:
        >>> from fngrad.sweeps import log_uniform
        >>> from fngrad.sweeps.searching.search_space import search_space
        >>> found = search_space({"rate": log_uniform(1e-4, 1.0)}, {"width": [8, 16]})
        >>> print(found.distributions["rate"], found.programs)
        FloatDistribution(high=1.0, log=True, low=0.0001, step=None) 2
    """
    static = {} if static is None else static
    for name, given in (("space", space), ("static", static)):
        if not isinstance(given, Mapping):
            raise TypeError(f"need {name}={{name: values}}, got {given!r}")
    if not space:
        raise ValueError("need at least one hyperparameter in space, got none")
    if both := sorted(space.keys() & static.keys()):
        raise ValueError(f"need {both[0]!r} in space or in static, got it in both")
    return Space(
        {name: _axis(name, within) for name, within in space.items()},
        {name: _static_axis(name, values) for name, values in static.items()},
    )


def _axis(name: str, within: Any) -> Axis:
    kinds = import_extra("optuna.distributions", "search")
    if not isinstance(within, kinds.BaseDistribution):
        within = _distribution(name, as_range(name, within), kinds)
    if isinstance(within, kinds.CategoricalDistribution):
        dtype = np.asarray(within.choices).dtype
    else:
        is_float = isinstance(within, kinds.FloatDistribution)
        dtype = np.dtype(float if is_float else int)
    if dtype.kind not in "biuf":
        raise TypeError(
            f"need numbers for {name!r}, got {within}: other values belong in "
            "static={name: [values]}"
        )
    return Axis(within, dtype)


def _distribution(name: str, within: Range, kinds: Any) -> Any:
    if within.values:
        return kinds.CategoricalDistribution(within.values)
    if within.low is None or within.high is None:
        raise ValueError(
            f"need a range with bounds for {name!r}, such as uniform or log_uniform, "
            f"got {within.text}: a distribution of Optuna is taken too"
        )
    return kinds.FloatDistribution(within.low, within.high, log=within.is_log)


def _static_axis(name: str, values: Any) -> StaticAxis:
    kinds = import_extra("optuna.distributions", "search")
    if isinstance(values, kinds.IntDistribution):
        count = (values.high - values.low) // values.step + 1
        return StaticAxis(values, {}, count)
    if isinstance(values, kinds.CategoricalDistribution):
        return StaticAxis(values, {}, len(values.choices))
    check_no_pair(name, values)
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(
            "need a list of values, at least one, or an IntDistribution or "
            f"CategoricalDistribution for each name in static, got {name}={values!r}"
        )
    labels = [x if isinstance(x, KEPT) else recorded(x) for x in values]
    known = dict(zip(labels, values, strict=True))
    if len(known) < len(labels):
        raise ValueError(
            f"need static values that differ in their texts, got {labels} for {name!r}"
        )
    return StaticAxis(kinds.CategoricalDistribution(labels), known, len(labels))
