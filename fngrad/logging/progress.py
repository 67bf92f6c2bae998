"""A progress bar on stderr or in a notebook, over tqdm."""

import functools
import sys
import warnings
from typing import Any

from fngrad.extras import import_extra

_SECONDS_BETWEEN_LINES = 10.0  # where stderr is a file, every refresh stays in it


class ProgressBar:
    """A bar of steps; it is given Python floats and so never waits for a device.

    Without tqdm there is no bar: one line on stderr says which extra brings it.

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
        make_bar = bar_type() if enabled else None
        self._bar: Any = make_bar and make_bar(
            total=total,
            initial=initial,
            desc=description or None,
            unit=f" {unit}",
            dynamic_ncols=True,
            mininterval=0.1 if _is_interactive() else _SECONDS_BETWEEN_LINES,
        )

    def describe(self, text: str) -> None:
        """Change what stands in front of the bar, at once."""
        if self._bar is not None:
            self._bar.set_description(text)

    def advance(self, n: int = 1) -> None:
        """Move the bar by n steps; it is drawn ten times a second at most."""
        if self._bar is not None:
            self._bar.update(n)

    def show(self, values: dict[str, float]) -> None:
        """Put values behind the bar, in three digits, at the next drawing."""
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Draw the last state and end the line; closing twice is allowed."""
        if self._bar is not None:
            self._bar.close()

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
    except ImportError as error:
        print(f"no progress bar: {error}", file=sys.stderr)
        return None


def _is_interactive() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules
