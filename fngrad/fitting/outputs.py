"""Where a run shows itself: the bar, the run folder, the loggers."""

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fngrad.checkpoint import steps
from fngrad.fitting.agenda import ENDLESS, Agenda
from fngrad.fitting.feeds import Feed
from fngrad.fitting.resume import Past
from fngrad.fitting.save_rules import SaveRules
from fngrad.fitting.validation import Values
from fngrad.history import History
from fngrad.logging import Logger, ProgressBar, RunFolder, jsonl, read_jsonl
from fngrad.logging.run_folder import read_manifest
from fngrad.logging.writers import cut_jsonl


class Outputs(contextlib.ExitStack):
    """All places that a run writes to but checkpoints; closes them at the end.

    Args:
        run_dir, config, loggers: see `fngrad.fit`.
        feed: the data.
        agenda: of the call.
        key: of the run's first state.
        rules: how the run is saved.
        past: where the call begins; if that is a checkpoint, what was recorded of
            later steps is cut.

    Raises:
        ValueError: the run folder holds another run, or this one's later steps.
        OSError: it cannot be written.
    """

    def __init__(
        self,
        run_dir: Any,
        config: Any,
        feed: Feed,
        loggers: Sequence[Logger],
        agenda: Agenda,
        key: jax.Array,
        rules: SaveRules,
        past: Past,
    ):
        super().__init__()
        self._loggers = list(loggers)
        self._bar: ProgressBar | None = None
        self._agenda = agenda
        self._checkpoints = rules.folder
        self.folder = None
        if run_dir is not None:
            may_cut = past.notes or (rules.folder and _died_unsaved(run_dir))
            _check_continues(
                Path(run_dir) / "metrics.jsonl", agenda.first, bool(may_cut)
            )
            self.folder = RunFolder(
                run_dir,
                config=config,
                data=feed.fingerprint,
                extra={"seed": jax.random.key_data(key).tolist()},
            )
            self._file = jsonl(self.folder.metrics)
            self._loggers.append(self._file)
        for logger in self._loggers:
            close = getattr(logger, "close", None)
            if close:
                self.callback(close)

    def open_bar(self, is_wanted: bool) -> None:
        """Show a progress bar where one is wanted, before there is progress to show."""
        if not is_wanted:
            return
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
            saved = self._checkpoints and str(self._checkpoints.absolute())
            self.folder.update_manifest(
                loop=loop, loop_reason=reason, checkpoints=saved, stopped=None
            )

    def advance(self, steps: int, values: Values) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.advance(steps)
            self._bar.show(values)

    def go_back(self, now: int, step: int) -> None:
        """Forget what the run folder holds of later steps; other loggers keep it."""
        if self._bar:
            self._bar.advance(step - now)
        if self.folder:
            self._file.close()
            cut_jsonl(self.folder.metrics, step)
            opened = jsonl(self.folder.metrics)
            self._loggers[self._loggers.index(self._file)] = opened
            self._file = opened
            self.callback(opened.close)

    def log(self, step: int, values: Values) -> None:
        """Give scalars to every logger."""
        for logger in self._loggers:
            logger(step, values)

    def finish(self, history: History, stopped: str, step: int) -> None:
        """Write down how the run ended, and draw its learning curves."""
        if self.folder is None:
            return
        names = ("compile_count", "compile_seconds", "rollbacks")
        told = {name: history.notes[name] for name in names if name in history.notes}
        self.folder.update_manifest(stopped=stopped, step=step, **told)
        if importlib.util.find_spec("matplotlib") is None:
            print('no curves.png: pip install "fngrad[plot]"', file=sys.stderr)
        elif history.keys() - {"is_finite"}:
            history.plot().savefig(self.folder.curves, dpi=120)


def _died_unsaved(run_dir: Any) -> bool:
    """Say whether a run that was to be saved died here, before it was."""
    manifest = read_manifest(run_dir)
    folder = manifest.get("checkpoints")
    return bool(folder) and manifest["stopped"] is None and not steps(folder)


def _check_continues(metrics: Path, first: int, may_cut: bool) -> None:
    """Cut records of steps that are made again, or raise where that is no resuming."""
    records = read_jsonl(metrics) if metrics.exists() else []
    reached = max((record["step"] for record in records), default=0)
    if reached > first and not may_cut:
        folder = read_manifest(metrics.parent).get("checkpoints")
        raise ValueError(
            f"need another run folder, or the state of step {reached} that the run in "
            f"{str(metrics.parent)!r} has reached, got step {first}"
            + (f"; its checkpoints were in {folder!r}" if folder else "")
        )
    if reached > first:
        cut_jsonl(metrics, first)
