"""What a run reports to: the progress bar, the run folder, the loggers."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import fngrad.logging.manifest as facts
from fngrad.checkpoint import steps as saved_steps
from fngrad.files.json_values import to_json
from fngrad.fitting.checkpointing import SaveRules
from fngrad.fitting.coordination import Coordination
from fngrad.fitting.early_stopping import Values
from fngrad.fitting.inputs import Feed, check_functions, check_methods
from fngrad.fitting.intervals import ENDLESS, Stops
from fngrad.fitting.loops import Choice
from fngrad.fitting.recording import Loggers, RunRecords
from fngrad.fitting.resume import Start
from fngrad.logging import (
    FileLogger,
    Logger,
    ProgressBar,
    RunFolder,
    jsonl,
    read_jsonl,
)
from fngrad.logging.history import History
from fngrad.logging.progress import COMPILING, TRAINING, print_to_stderr
from fngrad.logging.run_folder import read_manifest
from fngrad.logging.time_spent import TimeSpent
from fngrad.training import TrainState


class Reporting(NamedTuple):
    """The arguments of `fngrad.fit` that say what is reported, and to whom."""

    run_dir: Path | None
    config: Any
    loggers: Sequence[Logger]
    callbacks: Sequence[Callable[..., Any]]
    progress: bool

    def check(self, state: TrainState) -> None:
        """Raise unless loggers, callbacks, the config and ``progress`` can be used.

        Raises:
            TypeError: if they cannot.
        """
        if not isinstance(self.progress, bool):
            raise TypeError(f"need progress=True or False, got {self.progress!r}")
        check_functions("loggers", self.loggers, 0, {})
        check_methods(self.loggers)
        check_functions("callbacks", self.callbacks, 0, state, {})
        to_json({} if self.config is None else self.config, "config")

    def of(self, peers: Coordination) -> "Reporting":
        """Return what this process reports: all in the first one, nothing in others."""
        if peers.processes.is_first:
            return self
        return self._replace(run_dir=None, loggers=(), progress=False)

    @property
    def has_listeners(self) -> bool:
        """Whether anything is called or written every ``log_every`` steps."""
        return bool(self.loggers or self.callbacks or self.run_dir)


class Outputs(contextlib.ExitStack):
    """The bar, the run folder and the loggers, which it closes at the end.

    Args:
        reporting: the arguments of `fngrad.fit`.
        rules: how the run is saved.
        feed: the data.
        stops: of the call.
        start: where the call begins; a resumed run cuts what was recorded of later
            steps.
        key: of the caller's state.
        spent: counts the seconds of this call.
        about: more entries of the manifest.

    Raises:
        ValueError: if the run folder holds another run, or later steps of this one.
        OSError: if it cannot be written.
    """

    def __init__(
        self,
        *,
        reporting: Reporting,
        rules: SaveRules,
        feed: Feed,
        stops: Stops,
        start: Start,
        key: jax.Array,
        spent: TimeSpent,
        about: dict[str, Any],
    ):
        super().__init__()
        self.loggers: Loggers = Loggers(reporting.loggers)
        self._records: RunRecords | None = None
        self._bar = ProgressBar(None, enabled=False)
        self._stops, self._spent = stops, spent
        self._left_out = spent.compiling
        self._makes_first_step = self._makes_first_evaluation = True
        self._checkpoints = rules.folder
        self.folder: RunFolder | None = None
        file: FileLogger | None = None
        run_dir = reporting.run_dir
        may_cut = may_cut_records(run_dir, rules, start)
        if run_dir is not None:
            self.folder = RunFolder(
                run_dir,
                config=reporting.config,
                data=feed.fingerprint,
                extra={"seed": jax.random.key_data(key).tolist(), **about},
                age=sum(spent.seconds().values()),
            )
            self.folder.record(stopped=None, failure=None, autopsy=None, ended=None)
            self.push(self._record_failure)
            file = jsonl(self.folder.metrics)
            self._records = RunRecords(file, rules.on_error)
            self.push(self._records.close)
        self.push(self.loggers.close)
        try:
            if may_cut and file and file.cut:
                file.cut(start.logged)
            if may_cut:
                self.loggers.call("cut", start.logged)
            if reporting.config is not None:
                self.loggers.call("configure", reporting.config)
            if reporting.progress:
                self._open_bar()
        except BaseException:
            self.close()
            raise

    def _open_bar(self) -> None:
        total = None if self._stops.last == ENDLESS else self._stops.last
        text = COMPILING.format(jax.default_backend())
        self._bar = ProgressBar(total, self._stops.first, text)
        self.callback(self._bar.close)
        self.callback(self._leave_out_compiling)

    def _leave_out_compiling(self) -> None:
        """Leave what was traced and compiled out of the bar's rate."""
        compiling = self._spent.compiling
        self._bar.leave_out(compiling - self._left_out)
        self._left_out = compiling

    def recorded_loop(self) -> Any:
        """Return the loop that an earlier call with this run folder took."""
        return self.folder.manifest.get("loop") if self.folder else None

    def begin(self, loop: str, reason: str) -> None:
        """Record that training begins, in which loop, and why."""
        self._bar.restart()  # timing two loops says nothing of the rate
        self._left_out = self._spent.compiling
        if self.folder:
            saved = self._checkpoints and str(self._checkpoints)
            self.folder.record(loop=loop, loop_reason=reason, checkpoints=saved)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show that the first evaluation, a block, compiles."""
        if self._makes_first_evaluation:
            self._describe(COMPILING)
        yield
        if self._makes_first_evaluation:
            self._describe(TRAINING)
        self._makes_first_evaluation = False

    def _describe(self, text: str) -> None:
        self._bar.describe(text.format(jax.default_backend()))

    def advance(self, count: int, values: Values) -> None:
        """Move the bar by ``count`` steps and show values behind it."""
        self._leave_out_compiling()
        self._bar.advance(count)
        self._bar.show(values)
        if self._makes_first_step:
            self._describe(TRAINING)
        self._makes_first_step = False

    def print(self, text: str) -> None:
        """Print a line to stderr, above the bar."""
        with self.set_aside():
            print_to_stderr(text)

    def set_aside(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which loggers and callbacks may print."""
        return self._bar.set_aside()

    def roll_back(self, now: int, step: int) -> None:
        """Move the bar back, and cut what loggers hold of later steps."""
        self._bar.advance(step - now)
        if self._records:
            self._records.cut(step)
        self.loggers.call("cut", step)

    def log(self, step: int, values: Values) -> None:
        """Pass scalars to the run folder and to every logger.

        Raises:
            Exception: why metrics.jsonl cannot be written, unless
                ``on_save_error="warn"``.
        """
        if self._records:
            self._records.log(step, values)
        self.loggers.log(step, values)

    def _record_failure(self, kind: Any, error: Any, _: Any) -> None:
        """Record the exception that ends the run, with its autopsy, if there is one."""
        if self.folder is None or error is None:
            return
        found = getattr(error, "autopsy", None)
        self.folder.record(
            failure=f"{kind.__name__}: {error}",
            autopsy=None if found is None else str(found),
            ended=facts.now(),
            seconds=self._spent.seconds(),
        )

    def finish(self, history: History, stopped: str, step: int) -> None:
        """Record how the run ended, and draw its learning curves."""
        if self.folder is None:
            return
        names = ("compile_count", "compile_seconds", "rollbacks")
        notes = {name: history.notes[name] for name in names if name in history.notes}
        self.folder.record(stopped=stopped, step=step, ended=facts.now(), **notes)
        if history.keys() - {"is_finite"}:
            self.folder.draw(self.folder.curves.stem, history.plot)
        self.folder.record(seconds=self._spent.seconds(), ended=facts.now())


def decided_loop(
    loop: Any, start: Start, outputs: Outputs, peers: Coordination
) -> Choice | None:
    """Return the loop that was asked for or that an earlier call chose, if any.

    The first process, which has the run folder, says what is recorded there.
    """
    if loop != "auto":
        return Choice(loop, "asked for")
    if start.notes:
        notes = start.history.notes
        return Choice(**{field: notes[field] for field in Choice._fields})
    names = (None, "python", "scan")
    recorded = names[peers.agree(names.index(outputs.recorded_loop()))]
    return Choice(recorded, "recorded in the run folder") if recorded else None


def may_cut_records(run_dir: Path | None, rules: SaveRules, start: Start) -> bool:
    """Return whether a run may remove the records of steps that it makes again.

    It may if it resumes from a checkpoint, or the run in its folder died before it
    wrote one. Nothing is written.

    Raises:
        ValueError: if it may not, and there are such records.
    """
    if start.notes or run_dir is None:
        return bool(start.notes)
    if rules.folder and _died_unsaved(run_dir):
        return True
    _check_continues(run_dir, _last_recorded(run_dir / "metrics.jsonl"), start.logged)
    return False


def _died_unsaved(run_dir: Path) -> bool:
    """Return whether an earlier run died here before it wrote its first checkpoint."""
    manifest = read_manifest(run_dir)
    folder = manifest.get("checkpoints")
    died = manifest.get("stopped", "by another program") is None
    return bool(folder) and died and not saved_steps(folder)


def _last_recorded(metrics: Path) -> int:
    """Return the last step in a file of records."""
    records = read_jsonl(metrics) if metrics.exists() else []
    return max((record["step"] for record in records), default=0)


def _check_continues(run_dir: Path, recorded: int, first: int) -> None:
    """Raise if a folder has records of steps that the run will make again."""
    if recorded > first:
        folder = read_manifest(run_dir).get("checkpoints")
        raise ValueError(
            f"need another run folder, or the state of step {recorded} that the run in "
            f"{str(run_dir)!r} has reached, got step {first}"
            + (f"; its checkpoints were in {folder!r}" if folder else "")
            + '; fngrad.logging.new_run("runs") names a fresh folder, and '
            'fit(..., resume="overwrite") moves the old run aside'
        )
