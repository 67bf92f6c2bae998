"""What a run returns."""

from typing import NamedTuple

from fngrad.fitting.validation import Evaluation
from fngrad.logging.history import History
from fngrad.programs.caller_warnings import warn
from fngrad.programs.printed import preformatted, scalar_text, shown
from fngrad.training import TrainState


class FitResult(NamedTuple):
    """What `fit` returns."""

    state: TrainState  # the last one, in memory of its own
    history: History
    stopped: str  # completed, early_stopping, callback, interrupted or exhausted

    def __repr__(self) -> str:
        return shown(self, _text)

    def _repr_html_(self) -> str:
        curve = getattr(self.history, "curve", str)
        return preformatted(repr(self)) + curve()


def finished(
    state: TrainState, history: History, stopped: str, evaluation: Evaluation | None
) -> FitResult:
    """Return the result of a run, with the best state if that is to be restored.

    Args:
        state: the last one.
        history: all that was recorded.
        stopped: why the run ended.
        evaluation: of the run; it says whether to restore the best state.
    """
    best = history.best
    if evaluation is not None and evaluation.restores:
        if best is not None and best.by == evaluation.watched:
            return FitResult(best.state, history, stopped)
        warn(
            "restore_best=True returns the last state: no evaluation was made, or none "
            "had a number as its metric"
        )
    return FitResult(state, history, stopped)


def _text(result: FitResult) -> str:
    head = f"FitResult(step={scalar_text(result.state.step)}): {result.stopped}"
    return f"{head}\n{result.history.summary()}" if result.history else head
