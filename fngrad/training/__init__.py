"""Training as pure functions: state, step, run."""

from fngrad.training.run_checks import batch_at, call_step, check_order
from fngrad.training.scan import run
from fngrad.training.state import (
    TrainState,
    check_train_state,
    init_state,
    snapshot,
)
from fngrad.training.step import (
    Step,
    begin,
    finish,
    make_step,
    open_step,
    with_gradients,
)

__all__ = [
    "Step",
    "TrainState",
    "batch_at",
    "begin",
    "call_step",
    "check_order",
    "check_train_state",
    "finish",
    "init_state",
    "make_step",
    "open_step",
    "run",
    "snapshot",
    "with_gradients",
]


def __dir__() -> list[str]:
    return sorted(__all__)
