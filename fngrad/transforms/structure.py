"""What a transform is made of, for people: its parts, their hyperparameters, groups.

A transform is two functions; what it was made with is read from their closures. Nothing
of this enters the arithmetic.
"""

import functools
import numbers
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fngrad.programs.text_tables as text_tables
from fngrad.programs.printed import scalar_text
from fngrad.types import Path

# Functions that a factory passes to `from_report`, `wrapper` or `stateless`.
_PASSED_ON = ("report", "advance", "change")
_SETTINGS = ("sign", "reported")  # of `scale_by_learning_rate`, no hyperparameters
MASKED = ("selected", "rest")  # the labels of the groups of `masked`


class Group(NamedTuple):
    """Transforms inside of a part, and which leaves they get."""

    label: str  # the glob of a `partition`, of `MASKED`; empty for a wrapper
    takes: Callable[[Path, Any], bool] | None  # None: every leaf
    inner: Any  # a transform


def parts_of(transform: Any) -> tuple[Any, ...]:
    """Return the parts of a chain, also of one that is a part itself."""
    if transform.parts:
        return transform.parts
    return _cells(transform.init)["parts"] if is_composed(transform) else (transform,)


def is_composed(part: Any) -> bool:
    """Return whether a part is a chain, which `named` and the wrappers make."""
    return bool(part.parts) or _maker(part.init) == "compose"


def name_of_part(transform: Any) -> str:
    """Name a part after the function or the class that defines its ``init``."""
    init = transform.init
    qualname = getattr(init, "__qualname__", type(transform).__qualname__)
    inside = f".{getattr(init, '__name__', '')}"
    maker = qualname.removesuffix(inside).removesuffix(".<locals>").split(".")[-1]
    return maker.replace("<lambda>", "transform")


def variables_of(part: Any) -> dict[str, Any]:
    """Return by name what the functions of a part close over."""
    found: dict[str, Any] = {}
    for fn in (part.init, part.report or part.update):
        _collect(fn, found)
    return found


def hyperparameters_of(part: Any) -> dict[str, Any]:
    """Return the numbers, texts and schedules that a part was made with, by name."""
    variables = variables_of(part)
    if "reported" in variables and "factor" in variables:
        variables = {variables["reported"]: variables["factor"], **variables}
        del variables["factor"]
    return {
        name: value
        for name, value in sorted(variables.items())
        if name not in _SETTINGS and _is_hyperparameter(value)
    }


def groups_of(part: Any) -> list[Group]:
    """Return the transforms inside of a part, with the leaves that each gets."""
    variables = variables_of(part)
    groups = variables.get("groups")
    if isinstance(groups, list) and all(hasattr(group, "takes") for group in groups):
        return [Group(group.key, group.takes, group.inner) for group in groups]
    found = [value for value in variables.values() if isinstance(value, type(part))]
    unique = {id(transform.init): transform for transform in found}
    return [Group("", None, transform) for transform in unique.values()]


def partitions_of(transform: Any) -> Iterator[tuple[str, str]]:
    """Yield the part and the glob of every group of a `partition`, outer ones first."""
    for part in parts_of(transform):
        if part is not transform and is_composed(part):
            yield from partitions_of(part)
            continue
        groups = groups_of(part)
        labels = tuple(group.label for group in groups)
        if labels != MASKED:
            yield from ((part.name, label) for label in labels if label)
        for group in groups:
            yield from partitions_of(group.inner)


def has_one_learning_rate(transform: Any) -> bool:
    """Return whether all parts `scale_by_learning_rate` have one rate at every step.

    They do if each was made with the same number, array or schedule. A wrapper inside
    of a group may count the steps of a schedule otherwise, so that one is different.
    """
    rates = [*_learning_rates(transform, is_wrapped=False)]
    is_number = isinstance(rates[0], numbers.Real)
    return all(x is rates[0] or (is_number and x == rates[0]) for x in rates)


def text_of_parts(transform: Any) -> str:
    """Return one line per part of a transform, what is inside of a part indented."""
    rows = list(_rows(transform, 1))
    return f"Transform\n{text_tables.table(rows)}"


def value_text(value: Any) -> str:
    """Write a hyperparameter: a number, an array's shape, a schedule's name."""
    if callable(value):
        return _maker(value)
    if isinstance(value, bool | str | numbers.Integral):
        return repr(value)
    if isinstance(value, numbers.Real):
        return f"{value:.4g}"
    return scalar_text(value)


def _learning_rates(transform: Any, is_wrapped: bool) -> Iterator[Any]:
    """Yield the rates as they were given, a new object for one that is not known."""
    for part in parts_of(transform):
        if part is not transform and is_composed(part):
            yield from _learning_rates(part, is_wrapped)
            continue
        if part.name == "scale_by_learning_rate":
            rate = hyperparameters_of(part).get("learning_rate")
            is_known = rate is not None and not (callable(rate) and is_wrapped)
            yield rate if is_known else object()
        for group in groups_of(part):
            yield from _learning_rates(group.inner, is_wrapped or not group.label)


def _rows(transform: Any, depth: int) -> Iterator[list[str]]:
    for part in parts_of(transform):
        pairs = hyperparameters_of(part).items()
        texts = ", ".join(f"{name}={value_text(value)}" for name, value in pairs)
        yield ["  " * depth + (part.name or name_of_part(part)), texts]
        if is_composed(part):
            yield from _rows(part, depth + 1)
            continue
        for group in groups_of(part):
            if group.label:
                yield ["  " * (depth + 1) + group.label, ""]
            yield from _rows(group.inner, depth + 1 + bool(group.label))


def _collect(fn: Any, found: dict[str, Any]) -> None:
    """Add the variables of a function and of those of its maker that it calls."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    for name, value in _cells(fn).items():
        if name in found:
            continue
        is_inside = callable(value) and _maker(value) == _maker(fn) and _cells(value)
        found[name] = value
        if name in _PASSED_ON or is_inside:
            _collect(value, found)


def _cells(fn: Any) -> dict[str, Any]:
    """Return the variables of a closure that are bound."""
    found = {}
    code, cells = getattr(fn, "__code__", None), getattr(fn, "__closure__", None)
    for name, cell in zip(code.co_freevars if code else (), cells or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    return found


def _maker(fn: Any) -> str:
    """Return the name of the function that made another one, or else its own."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    qualname = getattr(fn, "__qualname__", type(fn).__qualname__)
    return qualname.split(".<locals>")[0].split(".")[-1]


def _is_hyperparameter(value: Any) -> bool:
    while isinstance(value, functools.partial):
        value = value.func
    if callable(value):
        module = getattr(value, "__module__", None) or ""
        return module.startswith("fngrad.schedules") or not module.startswith("fngrad.")
    is_scalar = hasattr(value, "dtype") and getattr(value, "shape", None) == ()
    return is_scalar or isinstance(value, numbers.Real | str)
