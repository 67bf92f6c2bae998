"""Where a run shows itself: the bar, the run folder, the loggers."""

import contextlib
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fngrad.checkpoint import steps
from fngrad.fitting.agenda import ENDLESS, Agenda
from fngrad.fitting.failures import note
from fngrad.fitting.feeds import Feed
from fngrad.fitting.resume import Past
from fngrad.fitting.save_rules import SaveRules
from fngrad.fitting.validation import Values
from fngrad.logging import Logger, ProgressBar, RunFolder, jsonl, read_jsonl
from fngrad.logging.history import History
from fngrad.logging.run_folder import read_manifest

_GOES_ON = 'on_save_error="warn" goes on without'


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
        self._on_error = rules.on_error
        self._failed: set[int] = set()  # loggers of which was warned
        self.folder = None
        may_cut = bool(past.notes)
        if run_dir is not None:
            may_cut = may_cut or (rules.folder and _died_unsaved(run_dir))
            reached = _reached(Path(run_dir) / "metrics.jsonl")
            if not may_cut:
                _check_continues(run_dir, reached, past.logged)
            self.folder = RunFolder(
                run_dir,
                config=config,
                data=feed.fingerprint,
                extra={"seed": jax.random.key_data(key).tolist()},
            )
            self._loggers.append(jsonl(self.folder.metrics))
        for logger in self._loggers:
            close = getattr(logger, "close", None)
            if close:
                self.push(functools.partial(self._close, logger))
        try:
            if may_cut:
                self._cut(past.logged)
        except BaseException:
            self.close()
            raise

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
            saved = self._checkpoints and str(self._checkpoints)
            self.folder.record(
                loop=loop, loop_reason=reason, checkpoints=saved, stopped=None
            )

    def advance(self, steps: int, values: Values) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.advance(steps)
            self._bar.show(values)

    def go_back(self, now: int, step: int) -> None:
        """Make the loggers forget what they hold of later steps, if they can."""
        if self._bar:
            self._bar.advance(step - now)
        self._cut(step)

    def _cut(self, step: int) -> None:
        for logger in self._loggers:
            cut = getattr(logger, "cut", None)
            if cut:
                cut(step)

    def log(self, step: int, values: Values) -> None:
        """Give scalars to every logger.

        Raises:
            Exception: what one raises, unless ``on_save_error="warn"``.
        """
        for place, logger in enumerate(self._loggers):
            try:
                logger(step, values)
            except Exception as error:
                if self._on_error == "raise":
                    note(error, f"raised by {_name(logger)}; {_GOES_ON}")
                    raise
                if place not in self._failed:
                    self._failed.add(place)
                    _warn(f"what {_name(logger)} was to log at step {step}", error)

    def _close(self, logger: Any, kind: Any, error: Any, _: Any) -> None:
        try:
            logger.close()
        except Exception as failure:
            words = f"{_name(logger)} could not be closed"
            if error is not None:
                note(error, f"{words}: {type(failure).__name__}: {failure}")
            elif self._on_error == "raise":
                note(failure, f"{words}; {_GOES_ON}")
                raise
            else:
                _warn(f"the end of what {_name(logger)} logged", failure)

    def finish(self, history: History, stopped: str, step: int) -> None:
        """Write down how the run ended, and draw its learning curves."""
        if self.folder is None:
            return
        names = ("compile_count", "compile_seconds", "rollbacks")
        told = {name: history.notes[name] for name in names if name in history.notes}
        self.folder.record(stopped=stopped, step=step, **told)
        if history.keys() - {"is_finite"}:
            self.folder.draw(self.folder.curves.stem, history.plot)


def _warn(what: str, error: Exception) -> None:
    warnings.warn(
        f"the run goes on, but {what} could not be written: "
        f"{type(error).__name__}: {error}",
        stacklevel=3,
    )


def _name(logger: Any) -> str:
    return f"the logger {getattr(logger, '__name__', type(logger).__name__)}"


def _died_unsaved(run_dir: Any) -> bool:
    """Say whether a run that was to be saved died here, before it was."""
    manifest = read_manifest(run_dir)
    folder = manifest.get("checkpoints")
    died = manifest.get("stopped", "by another program") is None
    return bool(folder) and died and not steps(folder)


def _reached(metrics: Path) -> int:
    """Return the last step that was recorded."""
    records = read_jsonl(metrics) if metrics.exists() else []
    return max((record["step"] for record in records), default=0)


def _check_continues(run_dir: Any, reached: int, first: int) -> None:
    """Raise where records of later steps are there, and the run is not resumed."""
    if reached > first:
        folder = read_manifest(run_dir).get("checkpoints")
        raise ValueError(
            f"need another run folder, or the state of step {reached} that the run in "
            f"{str(run_dir)!r} has reached, got step {first}"
            + (f"; its checkpoints were in {folder!r}" if folder else "")
            + "; to overwrite that run, delete its folder first: "
            f"shutil.rmtree({str(run_dir)!r})"
        )
