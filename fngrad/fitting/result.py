"""What a run returns."""

from typing import NamedTuple

from fngrad.logging.history import History
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


def _text(result: FitResult) -> str:
    head = f"FitResult(step={scalar_text(result.state.step)}): {result.stopped}"
    return f"{head}\n{result.history.summary()}" if result.history else head
