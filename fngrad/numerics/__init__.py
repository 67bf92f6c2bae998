"""Scalars that enter the arithmetic, and the arithmetic that must not go wrong."""

from fngrad.numerics.arithmetic import (
    cube_root,
    divide,
    inverse_root,
    power,
    power_or_one,
    square_root,
    two_sum,
)
from fngrad.numerics.checks import (
    MAX_STEP,
    MODES,
    as_int,
    check_count,
    check_mode,
    check_number,
    check_positive,
    check_unmasked,
    integers,
)
from fngrad.numerics.counters import first_step, next_step
from fngrad.numerics.gathers import rows
from fngrad.numerics.hyperparameters import hyper, scaled
from fngrad.numerics.norms import (
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
from fngrad.numerics.seeds import check_seed, key
from fngrad.numerics.softmax import exponentials, surprise

__all__ = [
    "MAX_STEP",
    "MODES",
    "as_double",
    "as_int",
    "bounded",
    "check_count",
    "check_mode",
    "check_number",
    "check_positive",
    "check_seed",
    "check_unmasked",
    "cube_root",
    "divide",
    "divided",
    "double_precision",
    "exponentials",
    "first_step",
    "fitting_norm",
    "hyper",
    "integers",
    "inverse_root",
    "key",
    "largest_square",
    "magnitudes",
    "modulus",
    "next_step",
    "norm",
    "power",
    "power_of_two_below",
    "power_or_one",
    "root_of_squares",
    "rows",
    "saturated",
    "scaled",
    "square_root",
    "surprise",
    "times_ratio",
    "two_sum",
]
