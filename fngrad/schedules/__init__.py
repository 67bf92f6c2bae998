r"""Schedules: a value for every step.

A *schedule* is a function ``step -> value``: the step is an int32 scalar, 0 at the
first update, or a Python int, or an array of steps (a curve at once); the value is
an array of that shape and of dtype ``jnp.result_type(float)``. A factory here returns
a schedule; its *lengths* count steps and its *values* are what is scheduled.

Lengths and values are data: numbers, scalar arrays or tracers, so ``vmap`` over a
length or a peak sweeps it. Numbers are checked; a traced length below 1 counts as 1.
Differences of steps are taken between integers, so no precision is lost late in a run.
The weights of an interpolation $l\,a + d\,b$ are the fractions ahead ($l$) and behind
($d$), which makes both ends exact.
"""

from typing import TYPE_CHECKING

from fngrad.schedules.decay import (
    constant,
    cosine,
    exponential,
    linear,
    piecewise_constant,
    polynomial,
)
from fngrad.schedules.phases import (
    cosine_restarts,
    inverse_sqrt,
    join,
    one_cycle,
    warmup_cosine,
    warmup_stable_decay,
)

__all__ = [
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "one_cycle",
    "piecewise_constant",
    "polynomial",
    "warmup_cosine",
    "warmup_stable_decay",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    import fngrad.programs.keywords_elsewhere as _keywords
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
    _keywords.explain_package(globals(), {})
