"""The run itself: train to the next stop, evaluate, log, call back, save, roll back."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from fngrad.checkpoint import Saved, rebuild
from fngrad.fitting.best import BestSoFar
from fngrad.fitting.checkpointing import SaveError, Saver
from fngrad.fitting.coordination import KEEPS, REPLACES, Status
from fngrad.fitting.early_stopping import Patience, Values
from fngrad.fitting.hooks import STOP, Hook, Hooks, RunView, Stop, check_answer
from fngrad.fitting.interrupts import Interruption, add_note, attach, is_donated
from fngrad.fitting.intervals import next_chunk, warn_if_short
from fngrad.fitting.loops import Advance, Carry, placed_like, read_rows
from fngrad.fitting.nonfinite import (
    MAX_ROLLBACKS,
    MAX_SKIPS,
    NonFiniteError,
    bad_leaf,
    lower_learning_rates,
    makes_no_progress,
    nonfinite_error,
    told_of_rollback,
)
from fngrad.fitting.plan import Plan
from fngrad.fitting.resume import PendingReport, Start
from fngrad.fitting.step_checks import check_like
from fngrad.logging.history import History
from fngrad.programs.caller_warnings import warn
from fngrad.training import TrainState, snapshot

_NOT_SAVED_AFTER = (SaveError, NonFiniteError, KeyboardInterrupt)


class Session:
    """A run in progress.

    Args:
        plan: the fixed parts.
        start: where the call begins.
        carry: the state and buffers to begin with.
        advance: the loop.
    """

    def __init__(self, plan: Plan, start: Start, carry: Carry, advance: Advance):
        self.carry: Carry = carry
        self.history: History = start.history
        self._plan = plan
        self._hooks = Hooks(plan.callbacks)
        self._advance = advance
        self._patience = self._make_patience(start.notes.get("patience"))
        self._best = self._make_best(start.notes)
        self._now = plan.stops.first
        self._logged = self._evaluated = self._now
        self._pending = start.report  # what an earlier call left to do at this step
        self._scores: Values = {}
        if start.report and start.report.evaluates:
            self._scores = start.report.values or {}
        self._chunk = 1
        self._bad: int | None = None  # the step, counted from 1, that is not finite

    def run(self, interrupted: Interruption) -> str:
        """Train to the last stop; return why the run ended."""
        saver = self._plan.saver
        if saver and self._plan.guard.policy == "rollback" and not saver.newest():
            self._save(saver)
        with self._hooks.ending(), self._telling():
            with self._plan.peers.together():
                self._advance = self._hooks.begin(self._view(), self._advance)
            stopped = self._run_to_end(interrupted)
        self._meet()
        is_unseen = self._plan.evaluation and self._now > self._evaluated
        evaluates = stopped == "exhausted" and is_unseen
        if evaluates:
            self._report(evaluates=True)
        if self._now > max(self._logged, self._plan.stops.first):
            self._plan.outputs.log(self._now, self._last_values())
            self._meet()
        if saver:
            if evaluates or self._now != saver.step:
                self._save(saver)
            self._wait(saver)
        if stopped == "exhausted":
            warn_if_short(self._plan.stops, self._now)
        return stopped

    def attach_to(self, error: BaseException) -> None:
        """Attach what was reached to the exception that ends the run, and save it.

        A state that is not finite is not saved, nor any state after a failure to save
        or a second Ctrl-C.
        """
        self._tell(error)
        state = None if is_donated(self.carry.state) else self.carry.state
        attach(error, state, self.history)
        if state is not None:
            saved = self._save_after(error)
            where = f"error.state and error.history contain its results{saved}"
        else:
            where = "its state was donated to the step in flight, error.state is None"
            if self._plan.saver:
                where += f"; the last checkpoint is of step {self._plan.saver.step}"
        add_note(error, f"the run had reached step {self._now}; {where}")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the other processes of an exception before the hooks end.

        What a hook still has to compute is dropped then, as it would wait for them.
        """
        try:
            yield
        except BaseException as error:
            self._tell(error)
            if not self._plan.peers.is_alone:
                self._hooks.forget()
            raise

    def _tell(self, error: BaseException) -> None:
        saves = not isinstance(error, _NOT_SAVED_AFTER)
        self._plan.peers.fail(error, saves=saves, where=f" at step {self._now}")

    def _save_after(self, error: BaseException) -> str:
        """Save the state, if allowed; return what an error's note says of it."""
        saver, peers = self._plan.saver, self._plan.peers
        is_refused = self._bad is not None or isinstance(error, _NOT_SAVED_AFTER)
        if saver is None or is_refused or not peers.may_save:
            return "" if self._bad is None else ", not all of them finite"
        try:
            leaf = self._bad_leaf()
            if leaf:
                return f", not saved, as {leaf!r} is not finite"
            if peers.any(self._now != saver.step or self._pending is not None):
                self._save(saver)
            self._wait(saver)
        except Exception as failure:  # it must not hide the first one
            return f"; saving it ended with {type(failure).__name__}: {failure}"
        return ", and a checkpoint holds its state too"

    def _run_to_end(self, interrupted: Interruption) -> str:
        plan, saver = self._plan, self._plan.saver
        begins = plan.evaluation and plan.evaluation.begins and self._is_untouched
        if self._pending or begins:
            stopped = self._report(not self._pending or self._pending.evaluates)
            if saver:
                self._save(saver)
            if stopped:
                return stopped
        stops = False
        while self._now < plan.stops.last:
            heard = self._meet(stops)
            if heard.stops:
                return "callback"
            if heard.interrupted:
                return "interrupted"
            is_whole = self._train(self._goal())
            if self._bad is not None:
                self._recover(self._bad, interrupted)
                continue
            if not is_whole:
                if plan.guard.feed.failure is not None:
                    raise plan.guard.feed.failure
                self._meet()
                return "exhausted"
            if plan.stops.reports_at(self._now):
                stopped = self._report(plan.stops.evaluates_at(self._now))
                if stopped:
                    return stopped
            if saver and saver.is_due(self._now):
                self._save(saver)
            elif saver:
                saver.catch_up(self.carry.state, self.history)
            stops = self._hooks.stop(self._now)
        return "completed"

    def _meet(self, stops: bool = False, answer: int = 0) -> Status:
        """Tell the other processes how this one stands, and hear how the run stands.

        Every part of the host's work that may fail in one process alone ends with it,
        before the next computation of all.
        """
        heard = self._plan.meet(self._chunk, stops=stops, answer=answer)
        self._chunk = heard.chunk
        return heard

    def _view(self) -> RunView:
        plan, outputs = self._plan, self._plan.outputs
        folder = outputs.folder and outputs.folder.path
        metrics, state = frozenset(plan.metrics), self.carry.state
        seen = (self._now, folder, metrics, self.history, plan.spent, outputs.print)
        is_first = plan.peers.processes.is_first
        return RunView(*seen, state, plan.guard, outputs.loggers, is_first)

    @property
    def _is_untouched(self) -> bool:
        """Whether the run is at step 0, with nothing recorded."""
        return self._now == 0 and not self.history

    def _goal(self) -> int:
        """Return where the next chunk must end: at a stop, or where a hook asks."""
        goal = self._plan.stops.next_after(self._now)
        if not self._hooks:
            return goal
        with self._plan.peers.together(saves=True):
            return self._hooks.goal(self._now, goal)

    def _train(self, goal: int) -> bool:
        """Make a chunk of steps, up to ``goal``; return whether the data sufficed."""
        length = min(self._chunk, goal - self._now)
        start = time.perf_counter()
        self._plan.guard.feed.seek(self._now)
        with self._plan.spent.on("stepping"), self._plan.peers.computing():
            self.carry, made = self._advance(self.carry, length)
            self._record(made)
        self._chunk = next_chunk(self._chunk, length, time.perf_counter() - start)
        saver = self._plan.saver
        is_saved_next = saver and (self._now == goal or saver.is_due(self._now))
        if is_saved_next and self._bad is None and self._bad_leaf():
            self._bad = self._now  # found before callbacks see the state
        return made == length

    def _bad_leaf(self) -> str | None:
        """Return the leaf for which the state must not be saved, if there is one."""
        if self._plan.guard.policy == "ignore":
            return None
        with self._plan.peers.computing():
            return bad_leaf(self.carry.state, self._plan.guard.state)

    def _recover(self, bad: int, interrupted: Interruption) -> None:
        """Roll back from a step that is not finite, or raise."""
        guard, saver = self._plan.guard, self._plan.saver

        def last_good() -> TrainState:
            saved = saver.newest() if saver else None
            return rebuild(saved, self.carry.state, "state") if saved else guard.state

        reason = ""
        if guard.policy == "skip":
            steps = self.history.steps("skipped")
            if guard.first_bad(self.history, steps) == bad:  # not a bad leaf
                reason = f"{MAX_SKIPS} steps in a row were skipped. "
        elif guard.policy == "rollback" and saver:
            saved = saver.newest()
            if saved is None:
                reason = "There is no checkpoint to roll back to. "
            elif makes_no_progress(self._rollbacks, bad):
                reason = f"{MAX_ROLLBACKS} rollbacks in a row made no progress. "
            else:
                return self._roll_back(bad, saved, saver)
        peers = self._plan.peers
        raise nonfinite_error(
            bad, self.history, guard, last_good, interrupted, peers, reason
        )

    @property
    def _rollbacks(self) -> list[dict[str, Any]]:
        return self.history.notes.get("rollbacks", [])

    def _roll_back(self, bad: int, saved: Saved, saver: Saver) -> None:
        """Go on from a checkpoint with a lower learning rate, which is saved first."""
        old = rebuild(saved, self.carry.state, "state")
        state = lower_learning_rates(old, self._plan.guard.factor)
        text, note = told_of_rollback(bad, saved.step, old, state)
        self._plan.outputs.print(text)
        self.history.truncate(saved.step)
        self.history.notes["rollbacks"] = [*self._rollbacks, note]
        self._plan.outputs.roll_back(self._now, saved.step)
        self.carry = Carry(state, self.carry.rows)
        self._plan.guard.feed.resume(saved.notes.get("iterator"))
        self._now, self._bad, self._chunk = saved.step, None, 1
        self._logged = self._evaluated = saved.step
        self._scores = saved.metrics
        self._patience = self._make_patience(saved.notes["patience"])
        if self.history.best and self.history.best.step > saved.step:
            self.history.best = saver.read_best(saved, state)
        self._best = self._make_best(saved.notes)
        self._best.replace(saved.step)  # this step is saved again with another rate
        self._save(saver)
        self._wait(saver)

    def _make_patience(self, notes: dict[str, Any] | None) -> Patience:
        """Return the patience as an earlier call or a checkpoint left it."""
        evaluation = self._plan.evaluation
        return Patience(evaluation.early_stopping if evaluation else None, notes)

    def _make_best(self, notes: dict[str, Any]) -> BestSoFar:
        """Return the best evaluation as an earlier call or a checkpoint left it."""
        evaluation, saver = self._plan.evaluation, self._plan.saver
        rule = evaluation.watched if evaluation else None
        is_saved = saver is None or saver.keeps(rule)
        return BestSoFar(rule, is_saved, self.history, notes)

    def _save(self, saver: Saver) -> None:
        leaf = self._bad_leaf()
        if leaf:
            warn(f"the state of step {self._now} is not saved: {leaf!r} is not finite")
            return
        values = self._scores if self._evaluated == self._now else {}
        progress = {
            "patience": self._patience.notes(),
            "look": self._pending,
            "iterator": self._plan.guard.feed.notes(),
            **self._best.notes(),
        }
        parts = self._best.content()
        if (taken := self._best.state_at(self._now)) is not None:
            parts["state"] = taken
        with self._plan.spent.on("saving"):
            saver.save(self.carry.state, self.history, values, progress, parts)

    def _wait(self, saver: Saver) -> None:
        with self._plan.spent.on("saving"):
            saver.wait(self.carry.state, self.history)

    def _record(self, made: int) -> None:
        """Read the metrics of the last steps into the history, and check them."""
        steps = np.arange(self._now, self._now + made)
        values = read_rows(self.carry, self._plan.metrics, steps)
        self._now += made
        if not made:
            return
        self.history.extend(steps + 1, values)
        shown = {"loss": float(values["loss"][-1])} if "loss" in values else {}
        self._plan.outputs.advance(made, shown)
        self._bad = self._plan.guard.first_bad(self.history, steps + 1)

    def _report(self, evaluates: bool) -> str | None:
        """Evaluate, log and call back, each once, whatever an earlier call has done."""
        report = self._pending or PendingReport(evaluates)
        if report.values is None:
            self._pending = report
            report = report._replace(values=self._measure(evaluates))
        values = report.values or {}
        self._pending = report
        with self._plan.outputs.set_aside():
            if not report.is_logged:
                self._plan.outputs.log(self._now, values)
                self._pending = report._replace(is_logged=True)
            self._logged = self._now
            self._meet()
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
        evaluating = self._plan.outputs.evaluating(), self._plan.peers.computing()
        with self._plan.spent.on("evaluating"), evaluating[0], evaluating[1]:
            scores = self._plan.evaluation.values(self.carry.state, self._plan.peers)
        taken = sorted(scores.keys() & self._plan.metrics.keys())
        if taken:
            raise ValueError(f"need metric names that are not taken, got {taken}")
        values |= {k: v for k, v in scores.items() if np.ndim(v) == 0}
        if self._plan.saver:
            self._plan.saver.update_best(values)
        self._patience.update(values)
        with self._plan.spent.on("saving"):
            self._best.update(values, self._now, self.carry.state)
        self._evaluated, self._scores = self._now, values
        self.history.extend(
            np.array([self._now]),
            {name: np.asarray(score)[None] for name, score in scores.items()},
        )
        return values

    def _last_values(self) -> Values:
        """Return the newest metrics of the step; none before the first."""
        names = [name for name in self._plan.metrics if name in self.history]
        return {name: self.history.last(name) for name in names}

    def _call_back(self, report: PendingReport, values: Values) -> Stop | None:
        for called, callback in enumerate(self._plan.callbacks):
            if called < report.called:
                continue
            answer = callback(self._now, self.carry.state, values)
            if isinstance(callback, Hook):
                self._pending = report._replace(called=called + 1)
                continue
            kind = 0 if answer is STOP else KEEPS if answer is None else REPLACES
            heard = self._meet(answer is STOP, kind)
            if answer is STOP or heard.stops:
                return STOP
            if answer is not None:
                check_answer(answer, self._now)
                check_like(self.carry.state, answer)
                self._best.replace(self._now)
                placed = placed_like(snapshot(answer), self.carry.state)
                self.carry = Carry(placed, self.carry.rows)
                self._now = int(answer.step)
            self._pending = report._replace(called=called + 1)
        return None
