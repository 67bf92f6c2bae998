"""When a run saves a checkpoint, what it holds, and what a failure to save does."""

import contextlib
import copy
import math
import time
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import fngrad.numerics as numerics
from fngrad.checkpoint import CheckpointError, Checkpoints, Saved
from fngrad.checkpoint.array_files import check_folder
from fngrad.checkpoint.device_transfer import HostTree, joined, take
from fngrad.checkpoint.writing import DEFAULT_BEST
from fngrad.files.local_paths import check_local
from fngrad.files.locks import Lock
from fngrad.fitting.best import NOTE, read_best
from fngrad.fitting.best_evaluation import BestEvaluation
from fngrad.fitting.coordination import Coordination, Status
from fngrad.fitting.early_stopping import BestValue, Values
from fngrad.fitting.inputs import check_option
from fngrad.fitting.intervals import Stops
from fngrad.fitting.presence import Presence, forget_dead
from fngrad.fitting.resume import Resume, Start
from fngrad.fitting.validation import check_measured
from fngrad.logging.history import History
from fngrad.logging.progress import print_to_stderr
from fngrad.logging.run_names import move_aside
from fngrad.metrics.directions import Directed, directed
from fngrad.programs.caller_warnings import warn
from fngrad.programs.optional_imports import import_extra
from fngrad.training import TrainState

DEFAULT_MINUTES = 10.0
_NEEDED = "checkpoint_dir, or run_dir with save_every or save_minutes"


class SaveError(RuntimeError):
    """A checkpoint could not be written; the run stopped and its state is here."""

    def __init__(self, message: str, state: TrainState, history: History):
        super().__init__(message)
        self.state = state  # as far as the run had come
        self.history = history


class SaveRules(NamedTuple):
    """The arguments of `fngrad.fit` that say what is saved, when and where."""

    folder: Path | None  # None: nothing is saved
    resume: Resume
    every: int | None  # steps
    minutes: float | None
    keep: int  # how many of the newest stay
    best: Any  # the best by it stays too: as given; once resolved, Directed or None
    on_error: Literal["raise", "warn"]

    def check(self, *, evaluates: bool) -> None:
        """Raise if an argument is out of range, or needs another.

        Args:
            evaluates: whether there will be evaluations to choose the best from.

        Raises:
            ValueError: if one is or does.
            ImportError: if something is to be saved and orbax-checkpoint is missing.
        """
        check_option("resume", self.resume, get_args(Resume))
        check_option("on_save_error", self.on_error, ("raise", "warn"))
        if self.every is not None:
            numerics.check_count("save_every", self.every, 1)
        numerics.check_count("keep", self.keep, 1)
        minutes = 1.0 if self.minutes is None else self.minutes
        if not (isinstance(minutes, Real) and 0 < minutes < math.inf):
            raise ValueError(
                f"need save_minutes as a finite number > 0, got {self.minutes!r}"
            )
        best = self.best
        if not (best is None or isinstance(best, str)):
            directed(best, "keep_best")
        if best not in (None, DEFAULT_BEST) and not evaluates:
            raise ValueError(f"need metric_fn and eval_data for keep_best={best!r}")
        is_asked = self.every is not None or self.minutes is not None
        if self.folder is None and (is_asked or self.resume == "must"):
            raise ValueError(
                f"need {_NEEDED}, got save_every={self.every} "
                f"save_minutes={self.minutes} resume={self.resume!r}"
            )
        if self.folder is not None:
            # Not with the first save: its modules add settings to newer JAX, and each
            # new setting makes all that was compiled before compile again.
            import_extra("orbax.checkpoint", "checkpoint", "orbax-checkpoint")

    def resolved(self, measured: set[str] | None) -> "SaveRules":
        """Return the rules with the direction of ``best``.

        Args:
            measured: the names of the run's metrics; None without evaluations.

        Raises:
            ValueError: if ``best`` is not measured, or its direction is unknown.
        """
        if self.best is None:
            return self
        if measured is not None and self.best != DEFAULT_BEST:
            name = self.best if isinstance(self.best, str) else self.best[0]
            check_measured("keep_best", name, measured)
        return self._replace(best=directed(self.best, "keep_best"))

    @property
    def seconds(self) -> float | None:
        """After how many seconds to save; None if the clock does not decide."""
        if self.minutes is None and self.every is None:
            return 60 * DEFAULT_MINUTES
        return None if self.minutes is None else 60 * self.minutes


def checkpoint_folder(
    checkpoint_dir: Any, run_dir: Any, save_every: Any, save_minutes: Any
) -> Path | None:
    """Return the folder that these arguments of `fngrad.fit` mean, if any.

    Raises:
        ValueError: if one of the folders is a URL.
        TypeError: if one is not a path.
    """
    check_local("run_dir", run_dir)
    check_local("checkpoint_dir", checkpoint_dir)
    if checkpoint_dir is not None:
        return Path(checkpoint_dir).absolute()
    is_asked = save_every is not None or save_minutes is not None
    return (
        Path(run_dir).absolute() / "checkpoints"
        if run_dir is not None and is_asked
        else None
    )


class _Snapshot(NamedTuple):
    """A checkpoint that is to be written, on the host."""

    step: int
    tree: HostTree
    values: Values
    notes: dict[str, Any]


class Saver:
    """Writes the checkpoints of a run, in the background.

    The checkpoint of a best evaluation never holds up training: while another one is
    being written it waits on the host, where a better one replaces it.

    Args:
        rules: where and how often, resolved.
        checkpoints: the folder, open.
        stops: of the call.
        start: where the call begins.
    """

    def __init__(
        self, rules: SaveRules, checkpoints: Checkpoints, stops: Stops, start: Start
    ):
        self._rules = rules
        self._checkpoints = checkpoints
        self._stops = stops
        self._notes = {"identity": start.identity, "log_every": stops.log_every}
        self._notes["programs"] = start.programs
        if stops.log_until is not None:
            self._notes["log_until"] = stops.log_until
        is_lost = NOTE in start.notes and start.history.best is None
        known = None if is_lost else start.notes.get("best")
        self._best = BestValue(*rules.best, notes=known) if rules.best else None
        self.step: int = start.step  # of the last checkpoint; at first, of the start
        self._saved_at = time.monotonic()
        self._improved = False
        self._waiting: _Snapshot | None = None
        self._heard: Status | None = None  # what holds for all of several processes

    def hear(self, status: Status) -> None:
        """Note what holds for all processes, instead of what does for this one."""
        self._heard = status

    @property
    def is_late(self) -> bool:
        """Whether to save by the clock of this process."""
        limit, seconds = self._rules.seconds, time.monotonic() - self._saved_at
        return limit is not None and seconds >= limit

    @property
    def is_writing(self) -> bool:
        """Whether this process writes a checkpoint."""
        return self._checkpoints.is_writing

    def has(self, step: int) -> bool:
        """Return whether there is a checkpoint of a step."""
        return step in self._checkpoints.steps()

    def update_best(self, values: Values) -> None:
        """Record an evaluation: its state is saved if it is the best so far.

        The default metric need not be measured, and at step 0 there are none of the
        step.
        """
        if self._best and self._best.is_in(values):
            self._improved = self._best.update(values)

    def keeps(self, rule: Directed | None) -> bool:
        """Return whether each evaluation that is the best by a rule is saved."""
        return rule is not None and self._rules.best == rule

    def read_best(self, saved: Saved, like: TrainState) -> BestEvaluation | None:
        """Return the best evaluation up to a checkpoint, see `read_best`."""
        return read_best(saved, self._checkpoints, like)

    def is_due(self, now: int) -> bool:
        """Return whether to save at a step, after its evaluation."""
        return now != self.step and (self._improved or self._is_asked_for(now))

    def _is_asked_for(self, now: int) -> bool:
        is_late = self.is_late if self._heard is None else self._heard.is_late
        return is_late or self._stops.saves_at(now)

    def save(
        self,
        state: TrainState,
        history: History,
        values: Values,
        progress: dict[str, Any],
        parts: dict[str, HostTree],
    ) -> None:
        """Write a checkpoint, which replaces one of the same step.

        Args:
            state: what is saved; its arrays may be donated afterwards.
            history: all that was recorded.
            values: floats by name, if this step was evaluated; else empty.
            progress: further notes for a later call.
            parts: further parts by name; the state among them is not copied again.

        Raises:
            SaveError: if this checkpoint or the one before could not be written, and
                ``on_save_error="raise"``.
        """
        now = int(state.step)
        may_wait = self._improved and not self._is_asked_for(now)
        self.step, self._saved_at = now, time.monotonic()
        self._improved = False
        if self._heard is not None:
            self._heard = self._heard._replace(is_late=False, is_writing=may_wait)
        best = self._best.notes() if self._best else None
        notes = {"best": best, "history": history.notes, **self._notes, **progress}
        if not may_wait:
            self.wait(state, history)
        try:
            content = {"state": parts.get("state") or take(state), **parts}
            content["history"] = take(history.to_arrays())
            # A deep copy, since the run changes its notes later.
            kept = copy.deepcopy(notes)
            self._waiting = _Snapshot(now, joined(content), values, kept)
        except CheckpointError as error:
            self._fail(error, state, history)
        self.catch_up(state, history)

    def catch_up(self, state: TrainState, history: History) -> None:
        """Begin to write the checkpoint that waits, unless another is being written.

        Raises:
            SaveError: if the one before could not be written, and
                ``on_save_error="raise"``.
        """
        heard = self._heard
        is_writing = self.is_writing if heard is None else heard.is_writing
        if self._waiting is None or is_writing:
            return
        self._settle(state, history)
        try:
            self._begin()
        except CheckpointError as error:
            self._fail(error, state, history)

    def newest(self) -> Saved | None:
        """Return the newest undamaged checkpoint, after all writes have ended."""
        try:
            self._checkpoints.wait()
            self._begin()
            self._checkpoints.wait()
        except CheckpointError as error:
            self._warn(error)
        return self._checkpoints.newest()

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            step, content, values, notes = waiting
            self._checkpoints.save(step, content, metrics=values, notes=notes)

    def wait(self, state: TrainState, history: History) -> None:
        """Return when everything is on disk.

        Raises:
            SaveError: if a checkpoint could not be written, and
                ``on_save_error="raise"``.
        """
        self._settle(state, history)
        if self._heard is not None:
            self._heard = self._heard._replace(is_writing=False)
        self.catch_up(state, history)
        self._settle(state, history)

    def _settle(self, state: TrainState, history: History) -> None:
        try:
            self._checkpoints.wait()
        except CheckpointError as error:
            self._fail(error, state, history)

    def _fail(
        self, error: CheckpointError, state: TrainState, history: History
    ) -> None:
        if self._rules.on_error == "raise":
            raise SaveError(
                f'{error}; on_save_error="warn" would continue the run without this '
                "checkpoint",
                state,
                history,
            ) from error
        self._warn(error)

    def _warn(self, error: CheckpointError) -> None:
        warn(f"the run continues without a checkpoint: {error}")


def opened(
    stack: contextlib.ExitStack,
    run_dir: Path | None,
    rules: SaveRules,
    peers: Coordination,
) -> Checkpoints | None:
    """Lock the folders for this run, and open the one of checkpoints.

    With ``resume="overwrite"``, what they hold is moved aside first. The first process
    does both for all.
    """
    with peers.together():
        if peers.processes.is_first:
            _lock(stack, run_dir, rules)
    if rules.folder is None:
        return None
    with peers.together():
        check_folder(rules.folder)
        if not peers.is_alone:
            presence = Presence(rules.folder, peers.processes)
            peers.presence = stack.enter_context(presence)
    if peers.presence is not None:
        peers.presence.look()
    checkpoints = Checkpoints(rules.folder, keep=rules.keep, best=rules.best)

    def close(kind: Any, error: Any, trace: Any) -> None:
        if not peers.is_lost:  # a writer would wait for the shards of those that ended
            checkpoints.__exit__(kind, error, trace)

    stack.push(close)
    return checkpoints


def _lock(stack: contextlib.ExitStack, run_dir: Path | None, rules: SaveRules) -> None:
    folders = [folder for folder in (run_dir, rules.folder) if folder is not None]
    if rules.resume == "overwrite":
        for old, new in move_aside(run_dir, rules.folder).items():
            print_to_stderr(f"fit: moved the old {old} to {new}")
    for folder in {folder.resolve(): folder for folder in folders}.values():
        stack.enter_context(Lock(folder))
    if rules.folder is not None:
        forget_dead(rules.folder)
