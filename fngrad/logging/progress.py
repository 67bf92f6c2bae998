"""What a run says on stderr or in a notebook: a progress bar, over tqdm, and lines.

Nothing here ends a run: where stderr is missing, closed or broken, less is shown.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from fngrad.programs.optional_imports import import_extra

_SECONDS_BETWEEN_LINES = 10.0  # where stderr is a file, every refresh stays in it


def say(text: str) -> None:
    """Write a line on stderr, if there is one to write to."""
    # A stream may be any object; print(file=None) would write to stdout.
    with contextlib.suppress(Exception):
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


class ProgressBar:
    """A bar of steps; it is given Python floats and so never waits for a device.

    Without tqdm there is no bar: one line on stderr says which extra brings it. A bar
    that fails is not shown any more, and raises nothing.

    Args:
        total: steps at the end of the bar; None counts without an end.
        initial: steps that were done before; they count in the bar, not in the rate.
        description: what stands in front of the bar.
        enabled: False shows nothing at all.
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
        make_bar = bar_type() if enabled and sys.stderr is not None else None
        if make_bar is None:
            return
        with self._harmless():
            self._bar = make_bar(
                total=total,
                initial=initial,
                desc=description or None,
                unit=f" {unit}",
                dynamic_ncols=True,
                mininterval=0.1 if _is_interactive() else _SECONDS_BETWEEN_LINES,
                **_stream(),
            )

    def describe(self, text: str) -> None:
        """Change what stands in front of the bar, at once."""
        self._tell(lambda bar: bar.set_description(text))

    def advance(self, n: int = 1) -> None:
        """Move the bar by n steps; it is drawn ten times a second at most."""
        self._tell(lambda bar: bar.update(n))

    def show(self, values: dict[str, float]) -> None:
        """Put values behind the bar, in three digits, at the next drawing."""
        self._tell(lambda bar: bar.set_postfix(values, refresh=False))

    def close(self) -> None:
        """Draw the last state and end the line; closing twice is allowed."""
        self._tell(lambda bar: bar.close())

    def _tell(self, change: Callable[[Any], None]) -> None:
        if self._bar is not None:
            with self._harmless():
                change(self._bar)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Give the bar up where it fails."""
        try:
            yield
        except Exception as error:
            bar, self._bar = self._bar, None
            with contextlib.suppress(Exception):
                bar.disable = True  # nor does deleting it draw
            say(f"no progress bar any more: {error!r}")

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


@functools.cache
def bar_type() -> Any:
    """Return the bar for this terminal or notebook, or None; cached, so said once."""
    try:
        # tqdm.auto warns of missing ipywidgets and then falls back to text.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_extra("tqdm.auto", "cli").tqdm
    except Exception as error:  # tqdm may be broken, too
        say(f"no progress bar: {error}")
        return None


class _Stream:
    """A stream for tqdm on which writing never fails."""

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

    def __eq__(self, other: object) -> bool:  # tqdm.write asks what bars share
        return self._stream == getattr(other, "_stream", other)

    def __hash__(self) -> int:
        return hash(self._stream)


def _stream() -> dict[str, Any]:
    """Return where to draw; a notebook's bar does not draw on a stream."""
    return {} if "ipykernel" in sys.modules else {"file": _Stream(sys.stderr)}


def _is_interactive() -> bool:
    try:
        return "ipykernel" in sys.modules or bool(sys.stderr.isatty())
    except Exception:  # closed, or without isatty
        return False
