"""What the processes of a run tell each other: one message between two chunks of steps.

Every process runs the same loop, and a computation that one does not start leaves the
others waiting in it. So what depends on one process alone is told to all: the clock of
the first decides how long a chunk is, which loop runs and when to save; a signal, an
exception or `STOP` in any ends the run in all, at the same step. One process alone
tells and waits for nothing.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fngrad.distributed import (
    PeerError,
    Processes,
    check_connected,
    may_be_of_another,
    others_know,
    processes,
)
from fngrad.fitting.interrupts import Interruption, add_note
from fngrad.fitting.presence import Presence

_T = TypeVar("_T")
KEEPS, REPLACES = 1, 2  # the state
_FAILED, _FAILED_SAVING = 1, 2


class Status(NamedTuple):
    """What a process tells the others; of all together, what holds for the run."""

    chunk: int = 1  # how many steps to make next; the first process decides
    is_late: bool = False  # whether to save by the clock; the first process decides
    stops: bool = False  # whether a hook ends the run
    is_writing: bool = False  # whether a checkpoint is being written
    answer: int = 0  # of a callback: KEEPS, REPLACES, or both by different processes
    media: int = 0  # what loggers take, as bits; the first process decides
    interrupted: bool = False
    signal: int = 0  # after which the process exits
    failed: int = 0  # whether an exception ends the run; then, whether it may be saved


_NOTHING = Status()
_OF_THE_FIRST = ("chunk", "is_late", "media")


class Coordination:
    """The processes of a run, as seen from this one.

    Args:
        interrupted: whether this process was asked to stop; set if another one was.
        peers: by default those of the program.

    Raises:
        RuntimeError: as `fngrad.distributed.check_connected`.
    """

    def __init__(self, interrupted: Interruption, peers: Processes | None = None):
        check_connected()
        self.processes: Processes = processes() if peers is None else peers
        self.presence: Presence | None = None  # once there is a folder to share
        self._interrupted = interrupted
        interrupted.settle = self._settle
        self.is_lost: bool = False  # whether the others may have ended, or wait forever
        self.may_save: bool = True  # whether all can save the state after an exception
        self._is_over = False  # whether nothing more need be told
        self._is_inside = False  # a computation of all

    @property
    def is_alone(self) -> bool:
        """Whether there is one process."""
        return self.processes.count == 1

    def meet(self, status: Status = _NOTHING) -> Status:
        """Tell the others how this process stands; return how the run stands.

        Raises:
            PeerError: if an exception has ended another process.
            ValueError: if a callback replaces the state in some processes only.
        """
        if self.is_alone:
            return status._replace(interrupted=self._interrupted.is_set())
        heard, rows = self._told(status)
        if heard.answer == KEEPS | REPLACES:
            raise ValueError(
                "need the same answer of a callback in all processes, got a state in "
                "some and None in others"
            )
        if not heard.failed:
            return heard
        texts = self._end(rows, "")
        raise PeerError("; ".join(filter(None, texts)))

    def fail(self, error: BaseException, *, saves: bool, where: str = "") -> None:
        """Tell the others of the exception that ends this process.

        Nothing is told if they know, as it is theirs, or cannot be told: if it came out
        of a computation of all, in which they still are.

        Args:
            error: the exception.
            saves: whether the state may be saved after it.
            where: what this process was doing.
        """
        if self.is_alone or self._is_over:
            return
        self._is_over = True
        if self._is_inside or isinstance(error, KeyboardInterrupt):
            self._lose(error)
            return
        try:
            _, rows = self._told(Status(failed=_FAILED_SAVING if saves else _FAILED))
            rank = self.processes.rank
            self._end(rows, f"process {rank} failed{where}: {_named(error)}")
            if isinstance(error, SystemExit):
                others_know()
        except Exception:  # which would hide the first one
            self._lose(error)

    def _settle(self) -> None:
        """Tell of signals that came after the last meeting, when none comes any more.

        Raises:
            PeerError: as `meet`.
        """
        if self.is_alone or self._is_over:
            return
        try:
            self.meet()
        except Exception as error:
            self._lose(error)
            raise

    def _lose(self, error: BaseException) -> None:
        self.is_lost, self.may_save = True, False
        if not may_be_of_another(error):
            return
        dead = self.presence.dead() if self.presence else []
        cause = "; ".join(f"process {rank} has died, as by a kill" for rank in dead)
        add_note(
            error,
            f"process {self.processes.rank} computed with the others: "
            + (cause or "if one of them has ended, what it printed tells why")
            + "; a run with checkpoints continues by the same call",
        )

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Mark a block in which all processes compute together.

        An exception from it leaves the others there: they cannot be told.
        """
        self._is_inside = True
        yield
        self._is_inside = False

    @contextlib.contextmanager
    def together(self, *, saves: bool = False) -> Iterator[None]:
        """Run a block in every process; if one raises there, all do, at its end.

        The block must not compute together, but may be a part of what does.

        Args:
            saves: whether the state may be saved after an exception.

        Raises:
            PeerError: if another process raised.
        """
        was_inside, self._is_inside = self._is_inside, False
        try:
            yield
        except Exception as error:
            self.fail(error, saves=saves)
            raise
        self.meet()
        self._is_inside = was_inside

    def telling(self, fn: Callable[..., _T]) -> Callable[..., _T]:
        """Return a function that raises in all processes, at its end, if one raises.

        All call it; it must not compute together.
        """

        def told(*arguments: Any) -> _T:
            with self.together(saves=True):
                return fn(*arguments)

        return told

    def compiled_by_all(self, program: Any) -> Callable[..., Any]:
        """Return a jitted program that no process runs before all have compiled it.

        Its first collective waits only half a minute for the process that comes last.
        """
        compiled = []

        def run(*arguments: Any) -> Any:
            if not compiled:
                with self.together(saves=True):
                    compiled.append(program.lower(*arguments).compile())
            return program(*arguments)

        return run

    def folder_of_the_first(self, folder: Path | None) -> Path | None:
        """Return the folder that the first process was given."""
        if self.is_alone:
            return folder
        told = self.processes.texts("" if folder is None else str(folder))[0]
        return Path(told) if told else None

    def check_same(self, settings: dict[str, Any]) -> None:
        """Raise in all processes unless all have the same settings.

        Raises:
            ValueError: if one differs; it is named, with the values of two processes.
        """
        if self.is_alone:
            return
        own = json.dumps({name: repr(value) for name, value in settings.items()})
        first, *others = map(json.loads, self.processes.texts(own))
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise ValueError(
                        f"need the same call of fit in all processes, got {name} "
                        f"{value} in process 0 and {other[name]} in process {rank}"
                    )

    def agree(self, value: Any) -> Any:
        """Return the first process's number, or tree of numbers."""
        return self.processes.agree(value)

    def any(self, flag: bool) -> bool:
        """Return whether any process passed True."""
        return self.processes.any(flag)

    def least(self, number: int) -> int:
        """Return the smallest number that a process passed."""
        return self.processes.least(number)

    def _told(self, status: Status) -> tuple[Status, np.ndarray]:
        """Tell a status; return that of all together, and who failed how."""
        interrupted = self._interrupted
        status = status._replace(
            interrupted=interrupted.is_set(), signal=int(interrupted.terminated or 0)
        )
        rows = self.processes.gather(np.array(status, np.int32))
        most, first = (
            Status._make(rows.max(axis=0).tolist()),
            Status._make(rows[0].tolist()),
        )
        answers = np.bitwise_or.reduce(rows[:, Status._fields.index("answer")])
        most = most._replace(answer=int(answers))
        heard = most._replace(**{name: getattr(first, name) for name in _OF_THE_FIRST})
        if heard.interrupted:
            interrupted.set()
        if heard.signal:
            interrupted.terminated = heard.signal
        return heard, rows[:, Status._fields.index("failed")]

    def _end(self, failed: np.ndarray, text: str) -> list[str]:
        """Note that an exception ends the run in all; return what each says of it."""
        self._is_over = True
        self.may_save = _FAILED not in failed
        return self.processes.texts(text)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
