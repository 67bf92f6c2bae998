"""When a run writes checkpoints, what is in them, and what becomes of a failure."""

import copy
import time
import warnings
from typing import Any, NamedTuple

from fngrad.checkpoint import CheckpointError, Checkpoints, Saved
from fngrad.checkpoint.device_transfer import HostTree, take
from fngrad.fitting.agenda import Agenda
from fngrad.fitting.resume import Past
from fngrad.fitting.save_rules import USUAL_BEST, SaveRules
from fngrad.fitting.validation import BestValue, Values
from fngrad.logging.history import History
from fngrad.training import TrainState


class SaveError(RuntimeError):
    """A checkpoint could not be written; the run stopped, its state is here."""

    def __init__(self, message: str, state: TrainState, history: History):
        super().__init__(message)
        self.state = state  # as far as the run had come
        self.history = history


class _Checkpoint(NamedTuple):
    """What is to be written, on the host."""

    step: int
    tree: HostTree
    values: Values
    notes: dict[str, Any]


class Saving:
    """Writes the checkpoints of a run, in the background.

    A best evaluation never holds up training: while another checkpoint is written its
    state waits on the host, and gives way to a better one.

    Args:
        rules: where and how often.
        checkpoints: the folder, open.
        agenda: of the call.
        past: where the call begins.
    """

    def __init__(
        self, rules: SaveRules, checkpoints: Checkpoints, agenda: Agenda, past: Past
    ):
        self._rules = rules
        self._checkpoints = checkpoints
        self._agenda = agenda
        self._notes = {"identity": past.identity, "log_every": agenda.log_every}
        self._best = BestValue(*rules.best, notes=past.best) if rules.best else None
        self.step = past.step  # of the last checkpoint; where the call began
        self._saved_at = time.monotonic()
        self._improved = False
        self._waiting: _Checkpoint | None = None

    def has(self, step: int) -> bool:
        """Return whether there is a checkpoint of a step."""
        return step in self._checkpoints.steps()

    def judge(self, values: Values) -> None:
        """Take in an evaluation: its state is kept if it is the best so far.

        Raises:
            ValueError: the metric that the user chose is not there.
        """
        is_usual = self._rules.best == USUAL_BEST
        if self._best and (self._best.is_in(values) or not is_usual):
            self._improved = self._best.improves(values)

    def is_due(self, now: int) -> bool:
        """Say whether to save, now that so many steps are made and looked at."""
        return now != self.step and (self._improved or self._is_asked_for(now))

    def _is_asked_for(self, now: int) -> bool:
        limit, seconds = self._rules.seconds, time.monotonic() - self._saved_at
        is_late = limit is not None and seconds >= limit
        return is_late or self._agenda.saves_at(now)

    def save(
        self,
        state: TrainState,
        history: History,
        values: Values,
        progress: dict[str, Any],
    ) -> None:
        """Write a checkpoint; one of the same step gives way to it.

        Args:
            state: what is saved; its arrays may be donated afterwards.
            history: all that was recorded.
            values: floats by name, if this step was evaluated; else empty.
            progress: what a later call needs besides.

        Raises:
            SaveError: this one or the one before could not be written, and that is to
                stop the run.
        """
        now = int(state.step)
        may_wait = self._improved and not self._is_asked_for(now)
        self.step, self._saved_at = now, time.monotonic()
        self._improved = False
        best = self._best.notes() if self._best else None
        notes = {"best": best, "history": history.notes, **self._notes, **progress}
        tree = {"state": state, "history": history.to_arrays()}
        if not may_wait:
            self.wait(state, history)
        try:
            # A deep copy: the run goes on to write notes of its own.
            self._waiting = _Checkpoint(now, take(tree), values, copy.deepcopy(notes))
        except CheckpointError as error:
            self._fail(error, state, history)
        self.catch_up(state, history)

    def catch_up(self, state: TrainState, history: History) -> None:
        """Begin to write what waits, if nothing is being written.

        Raises:
            SaveError: the one before could not be written, and that is to stop the run.
        """
        if self._waiting is None or self._checkpoints.is_writing:
            return
        self._settle(state, history)
        try:
            self._begin()
        except CheckpointError as error:
            self._fail(error, state, history)

    def newest(self) -> Saved | None:
        """Return the newest undamaged checkpoint, once all is on disk that can be."""
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
            step, tree, values, notes = waiting
            self._checkpoints.save(step, tree, metrics=values, notes=notes)

    def wait(self, state: TrainState, history: History) -> None:
        """Return when all is on disk.

        Raises:
            SaveError: it cannot be written, and that is to stop the run.
        """
        self._settle(state, history)
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
                f'{error}; on_save_error="warn" goes on without', state, history
            ) from error
        self._warn(error)

    def _warn(self, error: CheckpointError) -> None:
        warnings.warn(f"the run goes on without a checkpoint: {error}", stacklevel=3)
