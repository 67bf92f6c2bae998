"""Where a run shows itself: the bar, the run folder, the loggers."""

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fngrad.fitting.agenda import ENDLESS, Agenda
from fngrad.fitting.feeds import Feed
from fngrad.history import History
from fngrad.logging import Logger, ProgressBar, RunFolder, jsonl, read_jsonl

Values = dict[str, Any]


class Outputs(contextlib.ExitStack):
    """All places that a run writes to; closes them at the end."""

    def __init__(
        self,
        run_dir: Any,
        config: Any,
        feed: Feed,
        loggers: Sequence[Logger],
        agenda: Agenda,
        key: jax.Array,
    ):
        super().__init__()
        self._loggers = list(loggers)
        self._bar: ProgressBar | None = None
        self._agenda = agenda
        self.folder = None
        if run_dir is not None:
            _check_continues(Path(run_dir) / "metrics.jsonl", agenda.first)
            self.folder = RunFolder(
                run_dir,
                config=config,
                data=feed.fingerprint(),
                extra={"seed": jax.random.key_data(key).tolist()},
            )
            self._loggers.append(jsonl(self.folder.metrics))
        for logger in self._loggers:
            close = getattr(logger, "close", None)
            if close:
                self.callback(close)

    def open_bar(self) -> None:
        """Show a progress bar, before there is progress to show."""
        first, last = self._agenda.first, self._agenda.last
        total = None if last == ENDLESS else last
        words = f"compiling for {jax.default_backend()}"
        self._bar = ProgressBar(total, initial=first, description=words)
        self.callback(self._bar.close)

    def recorded_loop(self) -> Any:
        """Return the loop that an earlier call with this run folder took."""
        return self.folder.manifest.get("loop") if self.folder else None

    def begin(self, loop: str, reason: str) -> None:
        """Say that training begins, and write down in which loop, and why."""
        if self._bar:
            self._bar.describe(f"training on {jax.default_backend()}")
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

    def finish(self, history: History, stopped: str, step: int) -> None:
        """Write down how the run ended, and draw its learning curves."""
        if self.folder is None:
            return
        self.folder.update_manifest(stopped=stopped, step=step)
        if importlib.util.find_spec("matplotlib") is None:
            print('no curves.png: pip install "fngrad[plot]"', file=sys.stderr)
        elif history.keys() - {"is_finite"}:
            history.plot().savefig(self.folder.curves, dpi=120)


def _check_continues(metrics: Path, first: int) -> None:
    """Raise where a run would write steps a second time."""
    records = read_jsonl(metrics) if metrics.exists() else []
    reached = max((record["step"] for record in records), default=0)
    if reached > first:
        raise ValueError(
            f"need another run folder, or the state of step {reached} that the run in "
            f"{str(metrics.parent)!r} has reached, got step {first}"
        )
