"""Steps of methods that evaluate the loss.

A transform never sees the loss. A method that needs its value, its gradient at other
parameters, or its curvature is a step ``(state, batch) -> (state, metrics)``, in place
of `fngrad.make_step`'s. States come from `fngrad.init_state`. `fngrad.mixed_precision`
gives a loss another precision: ``sam(mixed_precision(loss_fn, "bfloat16"), sgd(0.1))``.
"""

from typing import TYPE_CHECKING

from fngrad.steps.differentially_private import differentially_private
from fngrad.steps.frozen_runs import freeze_diverged
from fngrad.steps.least_squares import gauss_newton, levenberg_marquardt
from fngrad.steps.line_search import line_search
from fngrad.steps.model_state_average import (
    AveragedModelState,
    average_model_state,
    with_average,
)
from fngrad.steps.plateau import observe, plateau
from fngrad.steps.polyak_step import polyak
from fngrad.steps.sharpness_aware import sam
from fngrad.steps.skipping import skip_bad_steps
from fngrad.steps.sophia import sophia
from fngrad.steps.spikes import skip_spikes

__all__ = [
    "AveragedModelState",
    "average_model_state",
    "differentially_private",
    "freeze_diverged",
    "gauss_newton",
    "levenberg_marquardt",
    "line_search",
    "observe",
    "plateau",
    "polyak",
    "sam",
    "skip_bad_steps",
    "skip_spikes",
    "sophia",
    "with_average",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
