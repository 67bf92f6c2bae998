"""A call to `fngrad.fit` while it runs."""

import enum
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fngrad.checkpoint import Saved, rebuild
from fngrad.fitting.agenda import Agenda
from fngrad.fitting.checks import check_answer, check_like
from fngrad.fitting.failures import Look, attach, is_there, note
from fngrad.fitting.interrupts import Interruption
from fngrad.fitting.loops import ROWS, Advance, Carry, read_rows
from fngrad.fitting.nonfinite import (
    MAX_ROLLBACKS,
    MAX_SKIPS,
    Guard,
    NonFiniteError,
    bad_leaf,
    error_of,
    has_come_no_further,
    learning_rates,
    lower_learning_rates,
)
from fngrad.fitting.outputs import Outputs
from fngrad.fitting.saving import SaveError, Saving
from fngrad.fitting.validation import Evaluation, Patience, Values
from fngrad.logging.history import History
from fngrad.logging.progress import say
from fngrad.training import TrainState, snapshot

CHUNK_SECONDS = 0.25  # between two looks at interrupts


class Stop(enum.Enum):
    """The type of `STOP`."""

    STOP = enum.auto()


STOP = Stop.STOP  # what a callback returns to end the run

Callback = Callable[[int, TrainState, Values], TrainState | Stop | None]


class Plan(NamedTuple):
    """What stays the same while a run goes on."""

    metrics: dict[str, Any]  # shapes and dtypes of the step's
    agenda: Agenda
    outputs: Outputs
    evaluation: Evaluation | None
    callbacks: Sequence[Callback]
    saving: Saving | None
    guard: Guard


class Session:
    """What changes while a run goes on, and who is told."""

    def __init__(
        self,
        plan: Plan,
        carry: Carry,
        advance: Advance,
        history: History,
        patience: Patience,
        look: Look | None = None,
    ):
        self.carry = carry
        self.history = history
        self._plan = plan
        self._advance = advance
        self._patience = patience
        self._now = plan.agenda.first
        self._logged = self._evaluated = self._now
        self._pending = look  # what an earlier call left to do at this step
        self._scores: Values = look.values or {} if look and look.evaluates else {}
        self._chunk = 1
        self._bad: int | None = None  # the step, counted from 1, that is to be undone

    def run(self, interrupted: Interruption) -> str:
        """Train to the end of the agenda; return why it ended."""
        saving = self._plan.saving
        if saving and self._plan.guard.policy == "rollback" and not saving.newest():
            self._save(saving)
        stopped = self._run(interrupted)
        is_unseen = self._plan.evaluation and self._now > self._evaluated
        looks = stopped == "exhausted" and is_unseen
        if looks:
            self._look(evaluates=True)
        if self._now > max(self._logged, self._plan.agenda.first):
            self._plan.outputs.log(self._now, self._last_values())
        if self._plan.saving:
            if looks or self._now != self._plan.saving.step:
                self._save(self._plan.saving)
            self._plan.saving.wait(self.carry.state, self.history)
        return stopped

    def rescue(self, error: BaseException) -> None:
        """Let the exception that ends the run carry what was reached; save it too.

        Not saved is what must not be: a state that is not finite, or after a failure
        to save; and after a second Ctrl-C, which waits for nothing.
        """
        state = self.carry.state if is_there(self.carry.state) else None
        attach(error, state, self.history)
        words = f"the run had come to step {self._now}; "
        if state is None:
            where = "its state was given to the step in flight, error.state is None"
            if self._plan.saving:
                where += f"; the last checkpoint is of step {self._plan.saving.step}"
        else:
            where = f"error.state and error.history hold it{self._rescue(error)}"
        note(error, words + where)

    def _rescue(self, error: BaseException) -> str:
        """Save the state, if it may be; say what became of it."""
        saving = self._plan.saving
        refused = SaveError | NonFiniteError | KeyboardInterrupt
        if saving is None or self._bad is not None or isinstance(error, refused):
            return ""
        try:
            leaf = self._bad_leaf()
            if leaf:
                return f", not saved, as {leaf!r} is not finite"
            if self._now != saving.step or self._pending:
                self._save(saving)
            saving.wait(self.carry.state, self.history)
        except Exception as failure:  # it must not hide the first one
            return f"; saving it ended with {type(failure).__name__}: {failure}"
        return ", and a checkpoint holds it too"

    def _run(self, interrupted: Interruption) -> str:
        if self._pending:
            stopped = self._look(self._pending.evaluates)
            if self._plan.saving:
                self._save(self._plan.saving)
            if stopped:
                return stopped
        while self._now < self._plan.agenda.last:
            if interrupted.is_set():
                return "interrupted"
            suffices = self._train(self._plan.agenda.next_stop(self._now))
            if self._bad is not None:
                self._recover(self._bad, interrupted)
                continue
            if not suffices:
                if self._plan.guard.feed.failure is not None:
                    raise self._plan.guard.feed.failure
                return "exhausted"
            if self._plan.agenda.looks_at(self._now):
                stopped = self._look(self._plan.agenda.evaluates_at(self._now))
                if stopped:
                    return stopped
            saving = self._plan.saving
            if saving and saving.is_due(self._now):
                self._save(saving)
            elif saving:
                saving.catch_up(self.carry.state, self.history)
        return "completed"

    def _train(self, goal: int) -> bool:
        """Make a chunk of steps, not beyond ``goal``; say whether the data sufficed."""
        length = min(self._chunk, goal - self._now)
        start = time.perf_counter()
        self.carry, made = self._advance(self.carry, length)
        self._record(made)
        self._chunk = next_chunk(self._chunk, length, time.perf_counter() - start)
        saving = self._plan.saving
        if saving and (self._now == goal or saving.is_due(self._now)):
            self._check_state()
        return made == length

    def _check_state(self) -> None:
        """Find a state that must not be saved, before it is looked at."""
        if self._bad is None and self._bad_leaf():
            self._bad = self._now

    def _bad_leaf(self) -> str | None:
        """Return the leaf for which the state must not be saved, if there is one."""
        if self._plan.guard.policy == "ignore":
            return None
        return bad_leaf(self.carry.state, self._plan.guard.state)

    def _recover(self, bad: int, interrupted: Interruption) -> None:
        """Go back and on, or raise."""
        guard, saving = self._plan.guard, self._plan.saving

        def nearest() -> TrainState:
            saved = saving.newest() if saving else None
            return rebuild(saved, self.carry.state, "state") if saved else guard.state

        reason = f"{MAX_SKIPS} steps in a row were skipped. "
        if guard.policy == "rollback" and saving:
            saved = saving.newest()
            past = self.history.notes.get("rollbacks", [])
            if saved and not has_come_no_further(past, bad):
                return self._roll_back(bad, saved, saving)
            reason = f"{MAX_ROLLBACKS} rollbacks came no further. "
        reason = "" if guard.policy == "raise" else reason
        raise error_of(bad, self.history, guard, nearest, interrupted, reason)

    def _roll_back(self, bad: int, saved: Saved, saving: Saving) -> None:
        """Go on from a checkpoint with a lower learning rate, which is saved first."""
        old = rebuild(saved, self.carry.state, "state")
        state = lower_learning_rates(old, self._plan.guard.factor)
        note = {
            "step": bad,
            "restored": saved.step,
            "learning_rate": list(learning_rates(old).values()),
            "lowered_to": list(learning_rates(state).values()),
        }
        say(f"fit: not finite, goes back: {note}")
        self.history.truncate(saved.step)
        self.history.notes["rollbacks"] = [
            *self.history.notes.get("rollbacks", []),
            note,
        ]
        self._plan.outputs.go_back(self._now, saved.step)
        self.carry = Carry(state, self.carry.rows)
        self._now, self._bad, self._chunk = saved.step, None, 1
        self._logged = self._evaluated = saved.step
        self._scores = saved.metrics
        evaluation, notes = self._plan.evaluation, saved.notes["patience"]
        rule = evaluation.early_stopping if evaluation else None
        self._patience = Patience(rule, notes)
        self._save(saving)
        saving.wait(state, self.history)

    def _save(self, saving: Saving) -> None:
        leaf = self._bad_leaf()
        if leaf:
            warnings.warn(
                f"the state of step {self._now} is not saved: {leaf!r} is not finite",
                stacklevel=2,
            )
            return
        values = self._scores if self._evaluated == self._now else {}
        progress = {"patience": self._patience.notes(), "look": self._pending}
        saving.save(self.carry.state, self.history, values, progress)

    def _record(self, made: int) -> None:
        steps = np.arange(self._now, self._now + made)
        values = read_rows(self.carry, self._plan.metrics, steps)
        self._now += made
        if not made:
            return
        self.history.extend(steps + 1, values)
        shown = {"loss": float(values["loss"][-1])} if "loss" in values else {}
        self._plan.outputs.advance(made, shown)
        self._bad = self._plan.guard.first_bad(self.history, steps + 1)

    def _look(self, evaluates: bool) -> str | None:
        """Evaluate, log and call back; each is done once, if not in one call."""
        look = self._pending or Look(evaluates)
        if look.values is None:
            self._pending = look
            look = look._replace(values=self._measure(evaluates))
        values = look.values or {}
        self._pending = look
        if not look.is_logged:
            self._plan.outputs.log(self._now, values)
            self._pending = look._replace(is_logged=True)
        self._logged = self._now
        answer = self._call_back(self._pending, values)
        self._pending = None
        if answer is STOP:
            return "callback"
        return "early_stopping" if self._patience.is_over else None

    def _measure(self, evaluates: bool) -> Values:
        """Return the last metrics, with those of an evaluation, which is recorded."""
        values = self._last_values()
        if not (evaluates and self._plan.evaluation):
            return values
        scores = self._plan.evaluation.values(self.carry.state)
        taken = sorted(scores.keys() & self._plan.metrics.keys())
        if taken:
            raise ValueError(f"need metric names that are not taken, got {taken}")
        values |= {k: v for k, v in scores.items() if np.ndim(v) == 0}
        if self._plan.saving:
            self._plan.saving.judge(values)
        self._patience.take(values)
        self._evaluated, self._scores = self._now, values
        self.history.extend(
            np.array([self._now]),
            {name: np.asarray(score)[None] for name, score in scores.items()},
        )
        return values

    def _last_values(self) -> Values:
        return {name: self.history.last(name) for name in self._plan.metrics}

    def _call_back(self, look: Look, values: Values) -> Stop | None:
        for called, callback in enumerate(self._plan.callbacks):
            if called < look.called:
                continue
            answer = callback(self._now, self.carry.state, values)
            if answer is STOP:
                return STOP
            if answer is not None:
                check_answer(answer, self._now)
                check_like(self.carry.state, answer)
                self.carry = Carry(snapshot(answer), self.carry.rows)
                self._now = int(answer.step)
            self._pending = look._replace(called=called + 1)
        return None


def next_chunk(chunk: int, length: int, seconds: float) -> int:
    """Return how many steps to make before the next look, near CHUNK_SECONDS.

    Args:
        chunk: how many were meant last time; it grows fourfold at most.
        length: how many steps were made.
        seconds: how long they took.
    """
    fitting = int(CHUNK_SECONDS * length / max(seconds, 1e-9))
    return max(1, min(4 * chunk, fitting, ROWS))
