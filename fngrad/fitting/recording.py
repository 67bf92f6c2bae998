"""The loggers and the record file of a run, and what happens if one of them fails.

A logger that raises is left out from then on, with one warning: a run does not end
because a server cannot be reached. The records of the run folder are data of the run:
what cannot be written is kept and written later, or ends the run.
"""

import collections
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

from fngrad.fitting.early_stopping import Values
from fngrad.fitting.interrupts import add_note
from fngrad.logging import FileLogger, Logger
from fngrad.programs.caller_warnings import warn

MEDIA = ("images", "histograms")  # methods of loggers that some have
CLOSE_SECONDS = 5.0  # how long the end of a run waits for a logger that was left out
_REMEDY = 'on_save_error="warn" would continue the run without it'


class Loggers:
    """The loggers of a run, of which one that raises is left out from then on.

    Args:
        loggers: of `fngrad.fit`.
    """

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers: list[Any] = list(loggers)
        self._to_close: list[Any] = list(loggers)  # those left out too
        self.ending: Literal["close", "fail", "kill"] = "close"  # without an exception
        self._told: int | None = None  # what those of the first process take

    def log(self, step: int, values: Values) -> None:
        """Pass scalars to every logger."""
        self._each(f"at step {step}", lambda logger: logger(step, values))

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of every logger that has it."""

        def call(logger: Any) -> None:
            fn = getattr(logger, method, None)
            if fn:
                fn(*arguments)

        self._each(f"in {method}", call)

    def take(self, method: str) -> bool:
        """Return whether a logger that is left, of the first process, has a method."""
        if self._told is not None:
            return bool(self._told >> MEDIA.index(method) & 1)
        return any(getattr(logger, method, None) for logger in self._loggers)

    @property
    def media(self) -> int:
        """Which of `MEDIA` the loggers of this process take: bit i of the i-th."""
        found = [
            any(getattr(logger, method, None) for logger in self._loggers)
            for method in MEDIA
        ]
        return sum(taken << i for i, taken in enumerate(found))

    def hear(self, media: int) -> None:
        """Note what the loggers of the first process take."""
        self._told = media

    def close(self, kind: Any, error: Any, _: Any) -> None:
        """Close every logger that can be; the arguments are those of ``__exit__``.

        One that was left out, because its service may not answer, is closed in a thread
        that the end of the run waits for no longer than CLOSE_SECONDS.
        """
        ending = self.ending if error is None else "fail"
        for logger in self._to_close:
            end = getattr(logger, ending, None) or getattr(logger, "close", None)
            is_left_out = not any(logger is x for x in self._loggers)
            try:
                if end and is_left_out:
                    _call_in_time(end)
                elif end:
                    end()
            except Exception as failure:
                text = f"{name_of(logger)} could not be closed"
                if error is not None:
                    add_note(error, text, failure)
                elif not is_left_out:
                    _warn(f"the run has ended, but {text}", failure)

    def _each(self, when: str, call: Callable[[Any], None]) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            except Exception as error:
                self._loggers = [x for x in self._loggers if x is not logger]
                text = f"which raised {when} and is left out from now on"
                _warn(f"the run continues without {name_of(logger)}, {text}", error)


def _call_in_time(fn: Callable[[], Any]) -> None:
    """Call a function in a thread, and wait for it no longer than CLOSE_SECONDS."""
    failures: list[BaseException] = []

    def call() -> None:
        try:
            fn()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=call, name="fngrad-close", daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if failures:
        raise failures[0]


class RunRecords:
    """The metrics.jsonl of a run folder, of which no record is lost silently.

    Args:
        logger: writes the file.
        on_error: ``raise`` ends the run if a record cannot be written; ``warn`` keeps
            it, and writes it before the next one.
    """

    def __init__(self, logger: FileLogger, on_error: Literal["raise", "warn"]):
        self._logger, self._on_error = logger, on_error
        self._waiting: collections.deque[tuple[int, Callable[[], Any]]]
        self._waiting = collections.deque()
        self._has_warned = False

    def log(self, step: int, values: Values) -> None:
        """Write a record.

        Raises:
            Exception: why it cannot be written, unless ``on_error="warn"``.
        """
        self._write(step, functools.partial(self._logger, step, values))

    def cut(self, step: int) -> None:
        """Remove the records of later steps; raises as `log` does."""
        self._write(step, functools.partial(self._logger.cut or (lambda _: None), step))

    def close(self, kind: Any, error: Any, _: Any) -> None:
        """Close the file; the arguments are those of ``__exit__``."""
        try:
            self._write_waiting()
        except Exception as failure:
            steps = sorted({step for step, _ in self._waiting})
            text = f"{name_of(self._logger)} lacks the records of the steps {steps}"
            self._end(text, failure, error)
        try:
            self._logger.close()
        except Exception as failure:
            text = f"{name_of(self._logger)} could not be closed"
            self._end(text, failure, error)

    def _end(self, text: str, failure: Exception, error: Any) -> None:
        if error is not None:
            add_note(error, text, failure)
        elif self._on_error == "raise":
            add_note(failure, f"{text}; {_REMEDY}")
            raise failure
        else:
            _warn(f"the run has ended, but {text}, which its history has", failure)

    def _write(self, step: int, operation: Callable[[], Any]) -> None:
        self._waiting.append((step, operation))
        try:
            self._write_waiting()
        except Exception as error:
            text = f"{name_of(self._logger)} could not be written at step {step}"
            if self._on_error == "raise":
                add_note(error, f"{text}; {_REMEDY}")
                raise
            if not self._has_warned:
                self._has_warned = True
                later = "what it lacks is written as soon as that works again"
                _warn(f"the run continues, but {text}; {later}", error)

    def _write_waiting(self) -> None:
        while self._waiting:
            self._waiting[0][1]()
            self._waiting.popleft()


def name_of(logger: Any) -> str:
    """Return what messages call a logger."""
    name = getattr(logger, "name", None) or getattr(logger, "__name__", None)
    return f"the logger {name or type(logger).__name__}"


def _warn(text: str, error: Exception) -> None:
    warn(f"{text}: {type(error).__name__}: {error}")
