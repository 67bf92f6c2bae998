"""Ctrl-C as a wish to stop, not as an exception in the middle of a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event; the second raises KeyboardInterrupt.

    Only the main thread may handle signals; in another the event never happens.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    usual = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, usual)
