"""Where a run shows itself: the bar, the run folder, the loggers."""

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fngrad.fitting.agenda import ENDLESS
from fngrad.fitting.feeds import Feed
from fngrad.history import History
from fngrad.logging import ProgressBar, RunFolder, jsonl

Values = dict[str, Any]
Logger = Callable[[int, Values], None]


class Outputs(contextlib.ExitStack):
    """All places that a run writes to; closes them at the end."""

    def __init__(
        self,
        run_dir: Any,
        config: Any,
        feed: Feed,
        loggers: Sequence[Logger],
    ):
        super().__init__()
        self._loggers = list(loggers)
        self._bar: ProgressBar | None = None
        self.folder = None
        if run_dir is not None:
            self.folder = RunFolder(run_dir, config=config, data=feed.fingerprint())
            self._loggers.append(jsonl(self.folder.metrics))
        for logger in self._loggers:
            if hasattr(logger, "close"):
                self.callback(logger.close)

    def open_bar(self, first: int, last: int) -> None:
        """Show a progress bar from one step to another."""
        total = None if last == ENDLESS else last
        self._bar = ProgressBar(total, initial=first, description=_description())
        self.callback(self._bar.close)

    def recorded_loop(self) -> Any:
        """Return the loop that an earlier call with this run folder took."""
        return self.folder.manifest.get("loop") if self.folder else None

    def record_loop(self, loop: str, reason: str) -> None:
        """Write down which loop runs, and why."""
        if self.folder:
            self.folder.update_manifest(loop=loop, loop_reason=reason)

    def advance(self, steps: int, values: Values) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.advance(steps)
            self._bar.show(values)

    def log(self, step: int, values: Values) -> None:
        """Give scalars to every logger."""
        for logger in self._loggers:
            logger(step, values)

    def finish(self, history: History) -> None:
        """Draw the learning curves into the run folder, where matplotlib is there."""
        if self.folder and len(history) and importlib.util.find_spec("matplotlib"):
            history.plot().savefig(self.folder.curves, dpi=120)


def _description() -> str:
    return f"training on {jax.default_backend()}"
