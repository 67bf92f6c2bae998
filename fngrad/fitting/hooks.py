"""What a callback may do: answer at reports, and act before and after each chunk.

A plain callback is called at reports only. One that is a `Hook` is also called before
and after every chunk of steps, which takes about a quarter of a second, and says where
a chunk must end. How a run is cut into chunks never changes its bits.
"""

import contextlib
import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fngrad.fitting.early_stopping import Values
from fngrad.fitting.inputs import check_state
from fngrad.fitting.interrupts import add_note
from fngrad.fitting.loops import Advance
from fngrad.fitting.nonfinite import Guard
from fngrad.fitting.recording import Loggers
from fngrad.logging.history import History
from fngrad.logging.time_spent import TimeSpent
from fngrad.training import TrainState


class Stop(enum.Enum):
    """The type of `STOP`."""

    STOP = enum.auto()


STOP = Stop.STOP  # what a callback returns to end the run

Callback = Callable[[int, TrainState, Values], TrainState | Stop | None]


class RunView(NamedTuple):
    """What a hook sees of a run that begins."""

    first: int  # the step where the call begins
    folder: Path | None  # ``run_dir``
    metrics: frozenset[str]  # the names of the step's metrics
    history: History  # which grows during the run
    spent: TimeSpent
    print: Callable[[str], None]  # a line on stderr, above the progress bar
    state: TrainState  # where the call begins; the first step may be given its memory
    guard: Guard  # has the step and the data
    loggers: Loggers
    is_first: bool = True  # of several processes, whether this one writes


@dataclasses.dataclass(frozen=True)
class Hook:
    """A callback that acts before and after each chunk of steps."""

    name: str
    begin: Callable[[RunView], None]  # before the first step
    check: Callable[[RunView], None] = lambda run: None  # may refuse; writes nothing
    before: Callable[[int], int | None] = lambda now: None  # where a chunk must end
    after: Callable[[int], Stop | None] = lambda now: None
    around: Callable[[Advance], Advance] = lambda advance: advance  # wraps the loop
    forget: Callable[[], None] = lambda: None  # drops what it would compute at the end
    end: Callable[[], None] = lambda: None  # however the run ends

    @classmethod
    def of(cls, name: str, part: Any) -> "Hook":
        """Return the hook whose functions are the methods of an object."""
        fields = [each.name for each in dataclasses.fields(cls) if each.name != "name"]
        return cls(name, **{f: getattr(part, f) for f in fields if hasattr(part, f)})

    def __call__(
        self, step: int, state: TrainState, values: Values
    ) -> TrainState | Stop | None:
        return None

    def __repr__(self) -> str:
        return self.name


class Hooks:
    """The hooks among the callbacks of a run.

    Args:
        callbacks: of the run; the others are ignored.
    """

    def __init__(self, callbacks: Sequence[Any]):
        self._hooks = [each for each in callbacks if isinstance(each, Hook)]

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def check(self, run: RunView) -> None:
        """Raise what a hook raises that cannot take part in the run; write nothing."""
        for hook in self._hooks:
            hook.check(run)

    def begin(self, run: RunView, advance: Advance) -> Advance:
        """Tell every hook that the run begins; return the loop as they wrap it."""
        for hook in self._hooks:
            hook.begin(run)
            advance = hook.around(advance)
        return advance

    def goal(self, now: int, goal: int) -> int:
        """Return where the next chunk must end: at ``goal`` or before.

        Args:
            now: how many steps have been made.
            goal: where the run itself stops next.
        """
        asked = [hook.before(now) for hook in self._hooks]
        return min([goal, *(step for step in asked if step is not None)])

    def stop(self, now: int) -> bool:
        """Call every hook after a chunk; return whether one of them ends the run."""
        answers = [hook.after(now) for hook in self._hooks]
        return STOP in answers

    def forget(self) -> None:
        """Call what drops the computations that hooks have still to make."""
        for hook in self._hooks:
            hook.forget()

    def ending(self) -> contextlib.ExitStack:
        """Return a context that calls the end of every hook, however the run ends.

        After an exception, a failure of a hook is a note on it.
        """
        stack = contextlib.ExitStack()
        for hook in self._hooks:
            stack.push(functools.partial(_end, hook))
        return stack


def _end(hook: Hook, kind: Any, error: Any, _: Any) -> None:
    try:
        hook.end()
    except Exception as failure:
        if error is None:
            raise
        add_note(error, f"the callback {hook.name} could not end", failure)


def check_answer(answer: Any, now: int) -> None:
    """Raise unless what a callback returned is a state to continue from.

    Args:
        answer: a value that is neither None nor `STOP`.
        now: how many steps have been made.

    Raises:
        TypeError: if it is not a state.
        ValueError: if it is of an earlier step.
    """
    if not isinstance(answer, TrainState):
        raise TypeError(
            "need None, a TrainState or fngrad.STOP from a callback, "
            f"got {type(answer).__name__}"
        )
    check_state(answer)
    if int(answer.step) < now:  # the steps after it would be recorded twice
        raise ValueError(
            f"need a state of step {now} or later from a callback, got step "
            f"{int(answer.step)}; keep the step: state._replace(step=current.step)"
        )
