"""The fixed parts of a run, of which `fngrad.fitting.session` is the progress."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fngrad.fitting.checkpointing import Saver
from fngrad.fitting.coordination import Coordination, Status
from fngrad.fitting.hooks import Callback
from fngrad.fitting.intervals import Stops
from fngrad.fitting.nonfinite import Guard
from fngrad.fitting.outputs import Outputs
from fngrad.fitting.validation import Evaluation
from fngrad.logging.time_spent import TimeSpent


class Plan(NamedTuple):
    """The fixed parts of a run."""

    metrics: dict[str, Any]  # the shapes and dtypes of the step's
    stops: Stops
    outputs: Outputs
    evaluation: Evaluation | None
    callbacks: Sequence[Callback]
    saver: Saver | None
    guard: Guard
    spent: TimeSpent
    peers: Coordination

    def meet(self, chunk: int = 1, *, stops: bool = False, answer: int = 0) -> Status:
        """Tell the other processes how this one stands, and hear how the run stands.

        Args:
            chunk: how many steps this process would make next.
            stops: whether a callback of it ends the run.
            answer: of a callback, see `Status`.

        Raises:
            PeerError: if an exception has ended another process.
            ValueError: if a callback answered differently there.
        """
        if self.peers.is_alone:
            return self.peers.meet(Status(chunk=chunk, stops=stops))
        saver, loggers = self.saver, self.outputs.loggers
        told = Status(
            chunk=chunk,
            is_late=saver is not None and saver.is_late,
            is_writing=saver is not None and saver.is_writing,
            stops=stops,
            answer=answer,
            media=loggers.media,
        )
        heard = self.peers.meet(told)
        loggers.hear(heard.media)
        if saver is not None:
            saver.hear(heard)
        return heard
