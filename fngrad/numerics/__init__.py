"""Hyperparameters, counters, keys, checks, and arithmetic without overflow."""

from fngrad.numerics.arithmetic import (
    FAR,
    FITTING_RATE,
    LARGE,
    clipped,
    cube_root,
    divide,
    inverse_root,
    largest,
    power,
    power_or_one,
    replaced,
    smallest,
    square_root,
    two_sum,
)
from fngrad.numerics.checks import (
    MAX_STEP,
    MODES,
    as_int,
    check_choice,
    check_count,
    check_mode,
    check_number,
    check_positive,
    check_unmasked,
    integers,
    is_known,
)
from fngrad.numerics.counters import first_step, next_step
from fngrad.numerics.gathers import rows
from fngrad.numerics.norms import (
    agreement,
    bounded,
    divided,
    fitting_norm,
    largest_square,
    magnitudes,
    modulus,
    norm,
    power_of_two_below,
    root_of_squares,
    saturated,
    times_ratio,
)
from fngrad.numerics.precision import as_double, double_precision
from fngrad.numerics.scalar_hyperparameters import hyper, hypers, scalar, scaled
from fngrad.numerics.seeds import check_seed, key
from fngrad.numerics.softmax import exponentials, surprise

__all__ = [
    "FAR",
    "FITTING_RATE",
    "LARGE",
    "MAX_STEP",
    "MODES",
    "agreement",
    "as_double",
    "as_int",
    "bounded",
    "check_choice",
    "check_count",
    "check_mode",
    "check_number",
    "check_positive",
    "check_seed",
    "check_unmasked",
    "clipped",
    "cube_root",
    "divide",
    "divided",
    "double_precision",
    "exponentials",
    "first_step",
    "fitting_norm",
    "hyper",
    "hypers",
    "integers",
    "inverse_root",
    "is_known",
    "key",
    "largest",
    "largest_square",
    "magnitudes",
    "modulus",
    "next_step",
    "norm",
    "power",
    "power_of_two_below",
    "power_or_one",
    "replaced",
    "root_of_squares",
    "rows",
    "saturated",
    "scalar",
    "scaled",
    "smallest",
    "square_root",
    "surprise",
    "times_ratio",
    "two_sum",
]


def __dir__() -> list[str]:
    return sorted(__all__)
