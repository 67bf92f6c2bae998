"""What ends a run early: signals, which wait for the end of a step, and exceptions."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from fngrad.logging.history import History
from fngrad.logging.progress import print_to_stderr
from fngrad.training import TrainState

PREEMPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: "try again later"

SignalName: TypeAlias = str | int  # "SIGTERM", or signal.SIGTERM
DEFAULT_EXIT_SIGNALS = ("SIGTERM",)
# SIGINT is Ctrl-C, after which `fit` returns; the others cannot be handled at all, or
# not between steps.
_REFUSED = {
    *("SIGINT", "SIGKILL", "SIGSTOP"),
    *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP"),
}


class Interruption:
    """Whether a run was asked to stop, and how."""

    terminated: int | None = None  # by this signal: the process should exit too
    raised: BaseException | None = None  # by the user's own handler of a signal

    reached: tuple[int, bool] | None = None  # the last step, and whether it is saved

    def __init__(self) -> None:
        self._is_set = False
        # Called when signals are no longer handled: they are told to all processes.
        self.settle: Callable[[], None] = lambda: None

    def set(self) -> None:
        """Ask the run to stop; takes no lock, as a signal may interrupt a handler."""
        self._is_set = True

    def is_set(self) -> bool:
        """Return whether the run was asked to stop."""
        return self._is_set

    @property
    def ending(self) -> Literal["close", "fail", "kill"]:
        """The method that ends a logger, if nothing raises before."""
        if self.raised is not None:
            return "fail"
        return "close" if self.terminated is None else "kill"


def exit_numbers(names: Sequence[SignalName], *, is_saved: bool) -> tuple[int, ...]:
    """Return the numbers of the signals that mean "save and exit".

    Args:
        names: such as ``"SIGTERM"`` or ``signal.SIGTERM``.
        is_saved: whether checkpoints are written; without them there are none.

    Raises:
        TypeError: if ``names`` is not a sequence of names and numbers.
        ValueError: if this system lacks a signal, if one cannot mean that, or if some
            are given and no checkpoints are written.
    """
    if isinstance(names, str | int) or not isinstance(names, Sequence):
        raise TypeError(
            f'need exit_signals as a sequence such as ("SIGTERM", "SIGUSR1"), got '
            f"{names!r}"
        )
    numbers = tuple(dict.fromkeys(_number(name) for name in names))
    if not is_saved and set(numbers) - set(map(_number, DEFAULT_EXIT_SIGNALS)):
        raise ValueError(
            "need checkpoint_dir, or run_dir with save_every or save_minutes, for "
            f"exit_signals={names!r}: they save before the process exits"
        )
    return numbers if is_saved else ()


def _number(name: Any) -> int:
    if isinstance(name, str):
        number = signal.Signals.__members__.get(name)
    elif isinstance(name, int | np.integer) and not isinstance(name, bool):
        number = int(name) if name in signal.valid_signals() else None
    else:
        raise TypeError(
            f"need names or numbers of signals in exit_signals, got {name!r}"
        )
    if number is None:
        raise ValueError(
            f"need signals of this system in exit_signals, got {name!r}: it has "
            f"{', '.join(sorted(set(signal.Signals.__members__) - _REFUSED))}"
        )
    if signal_name(number) in _REFUSED:
        raise ValueError(
            f"need signals in exit_signals that can wait for the end of a step, got "
            f"{signal_name(number)}"
            + (
                ", after which fit returns what was reached"
                if number == signal.SIGINT
                else ""
            )
        )
    return int(number)


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``"SIGTERM"``."""
    known = {int(member): member.name for member in signal.Signals}
    return known.get(int(number), f"signal {int(number)}")


@contextlib.contextmanager
def handled_signals(*, exits: Sequence[int] = ()) -> Iterator[Interruption]:
    """Turn the first Ctrl-C into a flag; the second raises KeyboardInterrupt.

    Only the main thread may handle signals; in any other the flag is never set. A
    signal that is ignored stays ignored, and one that C code handles is left alone. A
    user's own handler is called too. An exception from it is raised after the block,
    or at once if it comes from a second Ctrl-C.

    Args:
        exits: the signals that set the flag too, and end the process after the block.
            Repeating them does not end the block sooner.

    Raises:
        SystemExit: at the end of the block, with status `PREEMPTED`, after one of
            ``exits``.
        KeyboardInterrupt: at a second Ctrl-C.
        BaseException: whatever a user's own handler raised.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return _conclude(interruption)
    numbers = (signal.SIGINT, *exits)
    found = {number: signal.getsignal(number) for number in numbers}
    previous = {n: h for n, h in found.items() if h not in (None, signal.SIG_IGN)}

    def handle(number: int, frame: Any) -> None:
        is_second = number == signal.SIGINT and number in received
        received.add(number)
        interruption.set()
        own = previous[number]
        if number != signal.SIGINT:
            interruption.terminated = number
        elif own is signal.SIG_DFL:
            signal.signal(number, own)  # the second one ends the process
        if callable(own) and own is not signal.default_int_handler:
            try:
                own(number, frame)
            except BaseException as error:
                if is_second:
                    raise
                interruption.raised = error
        if is_second:
            signal.default_int_handler(number, frame)

    received: set[int] = set()
    try:
        for number in previous:
            signal.signal(number, handle)
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    _conclude(interruption)


def _conclude(interruption: Interruption) -> None:
    """Raise what signals of any process ask for, now that they are not handled."""
    interruption.settle()
    if interruption.raised is not None:
        raise interruption.raised
    if interruption.terminated is not None:
        if interruption.reached is not None:
            print_interrupted(interruption.terminated, *interruption.reached)
        raise SystemExit(PREEMPTED)


def print_interrupted(number: int | None, step: int, is_saved: bool) -> None:
    """Print to stderr what ended a run early, what is saved, and what follows.

    Args:
        number: the signal after which the process exits; None for Ctrl-C.
        step: that the run had reached.
        is_saved: whether there is a checkpoint of this step.
    """
    if number is not None:
        saved = "saved" if is_saved else "nothing to save"
        what, follows = signal_name(number), f"exits with status {PREEMPTED}"
    elif is_saved:
        what, saved, follows = "Ctrl-C", "saved", "the same call continues from there"
    else:
        what, saved = "Ctrl-C", "not saved"
        follows = "to continue, call fit with the state that it returns"
    print_to_stderr(f"fit: {what} at step {step}, {saved}: {follows}")


def attach(error: BaseException, state: TrainState | None, history: History) -> None:
    """Set ``state`` and ``history`` on an exception, unless it uses the name itself."""
    for name, value, kind in (
        ("state", state, TrainState),
        ("history", history, History),
    ):
        own = getattr(error, name, None)
        if own is None or isinstance(own, kind):
            try:
                setattr(error, name, value)
            except (AttributeError, TypeError):
                add_note(error, f"its class does not accept the attribute {name!r}")


def add_note(error: BaseException, text: str, failure: Exception | None = None) -> None:
    """Add a line to the message of an exception, with what failed because of it."""
    cause = "" if failure is None else f": {type(failure).__name__}: {failure}"
    error.add_note(f"fit: {text}{cause}")


def is_donated(state: TrainState) -> bool:
    """Return whether memory of a state was donated to a step that did not end."""
    leaves = jax.tree.leaves(state)
    return any(isinstance(x, jax.Array) and x.is_deleted() for x in leaves)
