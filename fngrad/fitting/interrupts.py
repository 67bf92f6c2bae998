"""Signals as wishes to stop, not as exceptions in the middle of a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from fngrad.logging.progress import say

PREEMPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: start me again

SignalName: TypeAlias = str | int  # "SIGTERM", or signal.SIGTERM
USUAL_EXITS = ("SIGTERM",)
# SIGINT is Ctrl-C, which returns; the others cannot be handled, or not between steps.
_REFUSED = (
    *("SIGINT", "SIGKILL", "SIGSTOP"),
    *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP"),
)


class Interruption:
    """Whether the run was asked to stop, and by whom."""

    terminated: int | None = None  # by this signal: the process should exit too
    raised: BaseException | None = None  # by the user's own handler of a signal

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Take note, without a lock: a signal may come while another is handled."""
        self._is_set = True

    def is_set(self) -> bool:
        """Say whether the run was asked to stop."""
        return self._is_set


def exit_numbers(names: Sequence[SignalName], *, is_saved: bool) -> tuple[int, ...]:
    """Return the numbers of signals that mean "save and exit".

    Args:
        names: such as ``"SIGTERM"`` or ``signal.SIGTERM``.
        is_saved: whether checkpoints are written; otherwise no signal means it.

    Raises:
        TypeError: not a sequence of such.
        ValueError: a signal that this system does not have, or one with another
            meaning; or some are asked for where nothing is saved.
    """
    if isinstance(names, str | int) or not isinstance(names, Sequence):
        raise TypeError(
            f'need exit_signals as a sequence such as ("SIGTERM", "SIGUSR1"), got '
            f"{names!r}"
        )
    numbers = tuple(dict.fromkeys(_number(name) for name in names))
    if not is_saved and set(numbers) - set(map(_number, USUAL_EXITS)):
        raise ValueError(
            "need checkpoint_dir, or run_dir with save_every or save_minutes, for "
            f"exit_signals={names!r}: they save before the process ends"
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
            f"{', '.join(sorted(set(signal.Signals.__members__) - set(_REFUSED)))}"
        )
    if name_of(number) in _REFUSED:
        raise ValueError(
            f"need signals in exit_signals that can wait for the end of a step, got "
            f"{name_of(number)}"
            + (", which returns what was reached" if number == signal.SIGINT else "")
        )
    return int(number)


def name_of(number: int) -> str:
    """Return what a signal is called."""
    known = {int(member): member.name for member in signal.Signals}
    return known.get(int(number), f"signal {int(number)}")


@contextlib.contextmanager
def interrupts(*, exits: Sequence[int] = ()) -> Iterator[Interruption]:
    """Turn the first Ctrl-C into an event; the second raises KeyboardInterrupt.

    Only the main thread may handle signals; in another the event never happens. A
    signal that is ignored stays ignored, and one that C code handles is left to it. A
    handler of the user's own is called too. An exception from it is raised after the
    block, except at a second Ctrl-C, where it is raised at once.

    Args:
        exits: the signals that become the event too, and then end the process.
            However often they come, the block ends in its own time.

    Raises:
        SystemExit: at the end of the block, with status `PREEMPTED`, after one of
            ``exits``.
        KeyboardInterrupt: at a second Ctrl-C.
        BaseException: what a handler of the user's own raised.
    """
    event = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = (signal.SIGINT, *exits)
    found = {number: signal.getsignal(number) for number in numbers}
    usual = {n: h for n, h in found.items() if h not in (None, signal.SIG_IGN)}

    def handle(number: int, frame: Any) -> None:
        is_second = number == signal.SIGINT and number in came
        came.add(number)
        event.set()
        own = usual[number]
        if number != signal.SIGINT:
            event.terminated = number
        elif own is signal.SIG_DFL:
            signal.signal(number, own)  # the second one ends the process
        if callable(own) and own is not signal.default_int_handler:
            try:
                own(number, frame)
            except BaseException as error:
                if is_second:
                    raise
                event.raised = error
        if is_second:
            signal.default_int_handler(number, frame)

    came: set[int] = set()
    try:
        for number in usual:
            signal.signal(number, handle)
        yield event
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if event.raised is not None:
        raise event.raised
    if event.terminated is not None:
        raise SystemExit(PREEMPTED)


def say_terminated(number: int, step: int, is_saved: bool) -> None:
    """Tell on stderr why the process ends, and how far the run had come."""
    saved = "saved" if is_saved else "nothing to save"
    say(
        f"fit: {name_of(number)} at step {step}, {saved}: exits with status {PREEMPTED}"
    )
