"""The progress bar, drawn by tqdm, and lines on stderr.

Nothing here ends a run: if stderr is missing, closed or broken, less is shown.
"""

import contextlib
import functools
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from fngrad.programs.caller_warnings import is_silent
from fngrad.programs.optional_imports import import_extra

COMPILING, TRAINING = "compiling for {}", "training on {}"  # a backend
_SECONDS_BETWEEN_LINES = 10.0  # if stderr is a file, which keeps every refresh


def print_to_stderr(text: str) -> None:
    """Print a line to stderr, if there is one; of several processes the first does."""
    if is_silent():
        return
    # A stream may be any object, and print(file=None) would write to stdout.
    with contextlib.suppress(Exception):
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


class ProgressBar:
    """A progress bar of steps; it takes Python floats, so it never waits for a device.

    Without tqdm there is no bar, and one line on stderr names the extra to install. A
    bar that fails is removed and raises nothing.

    Args:
        total: the number of steps of the whole run; None if unknown.
        initial: the steps already made; they count in the bar but not in the rate.
        description: the text before the bar.
        enabled: whether to show anything.
        unit: what is counted.

    Example:
        >>> from fngrad.logging import ProgressBar
        >>> bar = ProgressBar(100, description="training", enabled=False)
        >>> bar.advance(10)
        >>> bar.show({"loss": 0.5})
        >>> bar.close()
    """

    def __init__(
        self,
        total: int | None,
        initial: int = 0,
        description: str = "",
        enabled: bool = True,
        unit: str = "steps",
    ):
        self._bar: Any = None
        self._description = description
        self._is_terminal = _is_terminal()
        if not enabled or sys.stderr is None or not (make_bar := bar_type()):
            return
        is_drawn_often = self._is_terminal or _in_notebook()
        stream = _Stream if is_drawn_often else _Lines
        with self._removed_on_failure():
            self._bar = make_bar(
                total=total,
                initial=initial,
                desc=description or None,
                unit=f" {unit}",
                dynamic_ncols=True,
                mininterval=0.1 if is_drawn_often else _SECONDS_BETWEEN_LINES,
                file=None if _in_notebook() else stream(sys.stderr),
            )

    def describe(self, text: str) -> None:
        """Change the text before the bar, at once."""
        self._apply(lambda bar: bar.set_description(text))

    def advance(self, n: int = 1) -> None:
        """Move the bar by n steps.

        It is redrawn at most every 0.1 s, in a file every 10 s.
        """
        self._apply(lambda bar: bar.update(n))

    def show(self, values: dict[str, float]) -> None:
        """Show values, with three significant digits, when the bar is next redrawn."""
        self._apply(lambda bar: bar.set_postfix(values, refresh=False))

    def leave_out(self, seconds: float) -> None:
        """Leave some of the seconds since the last call out of rate and remaining time.

        Args:
            seconds: such as those that compiling took.
        """

        def shift(bar: Any) -> None:
            if not bar.disable:
                bar.start_t += seconds
                bar.last_print_t += seconds

        self._apply(shift)

    def restart(self) -> None:
        """Leave all time before this call, during which no step was counted, out."""
        self._apply(lambda bar: bar.disable or bar.unpause())

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Show that a block compiles, and leave its time out of the rate."""
        self.describe(f"{self._description}: compiling")
        begin = time.perf_counter()
        yield
        self.leave_out(time.perf_counter() - begin)
        self.describe(self._description)

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Clear the bar while a block prints; draw it again below what was printed."""
        if not self._is_terminal:
            yield
            return
        self._apply(lambda bar: bar.clear())
        yield
        self._apply(lambda bar: bar.refresh())

    def close(self) -> None:
        """Draw the bar for the last time and end the line; closing twice is allowed."""
        self._apply(lambda bar: bar.close())

    def _apply(self, change: Callable[[Any], None]) -> None:
        if self._bar is not None:
            with self._removed_on_failure():
                change(self._bar)

    @contextlib.contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        """Remove the bar if it fails."""
        try:
            yield
        except Exception as error:
            bar, self._bar = self._bar, None
            with contextlib.suppress(Exception):
                bar.disable = True  # otherwise deleting it would draw
            print_to_stderr(f"the progress bar failed and was removed: {error!r}")

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


@functools.cache
def bar_type() -> Any:
    """Return tqdm's bar class, or None after a line on stderr; cached, so only once."""
    try:
        # tqdm.auto warns about missing ipywidgets and then falls back to text.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_extra("tqdm.auto", "cli").tqdm
    except Exception as error:  # missing or broken
        print_to_stderr(f"no progress bar: {error}")
        return None


class _Stream:
    """A stream for tqdm whose writes never raise."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(Exception):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(Exception):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # tqdm.write compares the streams of bars
        return self._stream == getattr(other, "_stream", other)

    def __hash__(self) -> int:
        return hash(self._stream)


class _Lines(_Stream):
    """A file, which keeps all that is written: each state of a bar is a line of it."""

    _last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:  # a bar that ends is drawn once more
            super().write(line + "\n")
            self._last = line


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _is_terminal() -> bool:
    try:
        return not _in_notebook() and bool(sys.stderr.isatty())
    except Exception:  # closed, or without isatty
        return False
