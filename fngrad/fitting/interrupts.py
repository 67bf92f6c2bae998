"""Signals as wishes to stop, not as exceptions in the middle of a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

PREEMPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: start me again


class Interruption(threading.Event):
    """Whether the run was asked to stop, and by whom."""

    terminated = False  # by SIGTERM: the process should exit too


@contextlib.contextmanager
def interrupts(*, terminates: bool = False) -> Iterator[Interruption]:
    """Turn the first Ctrl-C into an event; the second raises KeyboardInterrupt.

    Only the main thread may handle signals; in another the event never happens.

    Args:
        terminates: whether SIGTERM becomes the event too. However often it comes, the
            block ends in its own time.

    Raises:
        SystemExit: at the end of the block, with status `PREEMPTED`, after SIGTERM.
        KeyboardInterrupt: at a second Ctrl-C.
    """
    event = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    defaults: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
    if terminates:
        defaults[signal.SIGTERM] = signal.SIG_DFL
    usual = {number: _handler(number, default) for number, default in defaults.items()}

    def handle(number: int, frame: Any) -> None:
        event.set()
        if number == signal.SIGTERM:
            event.terminated = True
        else:
            signal.signal(number, usual[signal.SIGINT])

    try:
        for number in usual:
            signal.signal(number, handle)
        yield event
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if event.terminated:
        raise SystemExit(PREEMPTED)


def _handler(number: int, default: Any) -> Any:
    """Return what handles a signal now, or the default for what Python cannot know."""
    handler = signal.getsignal(number)
    return default if handler is None else handler
