"""A call to `fngrad.fit` while it runs."""

import enum
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

import fngrad.evaluation as evaluation
from fngrad.fitting.agenda import Agenda
from fngrad.fitting.checks import check_answer, check_like
from fngrad.fitting.loops import ROWS, Advance, Carry, read_rows
from fngrad.fitting.outputs import Outputs, Values
from fngrad.history import History
from fngrad.training import TrainState, snapshot

CHUNK_SECONDS = 0.25  # between two looks at interrupts


class Stop(enum.Enum):
    """The type of `STOP`."""

    STOP = enum.auto()


STOP = Stop.STOP  # what a callback returns to end the run

Callback = Callable[[int, TrainState, Values], TrainState | Stop | None]


class EarlyStopping(NamedTuple):
    """End a run when a metric has not improved for some evaluations.

    The run ends with its last state, not with the best one; a callback can keep a
    `fngrad.snapshot` of that. At the last step of a run patience comes first.
    """

    metric: str = "val/loss"  # its name in the history
    patience: int = 10  # evaluations without improvement, >= 1
    mode: Literal["min", "max"] = "min"  # which way is better
    min_delta: float = 0.0  # what counts as an improvement, in units of the metric


class NonFiniteError(FloatingPointError):
    """The loss or the gradient of a step is not finite."""

    def __init__(self, message: str, step: int, history: History):
        super().__init__(message)
        self.step = step  # counts from 1
        self.history = history  # to the end of the chunk with that step


class Evaluation(NamedTuple):
    """What is evaluated, and when it is time to give up."""

    metric_fn: Callable[..., Any]
    data: Any
    early_stopping: EarlyStopping | None

    @classmethod
    def of(
        cls, metric_fn: Any, data: Any, early_stopping: EarlyStopping | None
    ) -> "Evaluation | None":
        """Check that what belongs together was given together.

        Raises:
            ValueError: it was not, or early stopping is out of range.
            TypeError: ``early_stopping`` is something else.
        """
        if (metric_fn is None) != (data is None):
            raise ValueError("need both metric_fn and eval_data, or neither")
        if early_stopping is None:
            return None if metric_fn is None else cls(metric_fn, data, None)
        if metric_fn is None:
            raise ValueError("need metric_fn and eval_data for early stopping")
        if not isinstance(early_stopping, EarlyStopping):
            raise TypeError(f"need an EarlyStopping, got {early_stopping!r}")
        if early_stopping.mode not in ("min", "max"):
            raise ValueError(f'need mode="min" or "max", got {early_stopping.mode!r}')
        if early_stopping.patience < 1:
            raise ValueError(f"need patience >= 1, got {early_stopping.patience}")
        return cls(metric_fn, data, early_stopping)

    def values(self, state: TrainState) -> Values:
        """Return the metrics of a state, under ``val/``."""
        scores = evaluation.evaluate(self.metric_fn, state, self.data)
        return {f"val/{name}": score for name, score in scores.items()}


class Session:
    """What changes while a run goes on, and who is told."""

    def __init__(
        self,
        *,
        carry: Carry,
        advance: Advance,
        metrics: dict[str, Any],
        agenda: Agenda,
        history: History,
        outputs: Outputs,
        evaluation: Evaluation | None,
        callbacks: Sequence[Callback],
        raises: bool,
    ):
        self.carry = carry
        self._advance = advance
        self._metrics = metrics
        self._agenda = agenda
        self.history = history
        self._outputs = outputs
        self._evaluation = evaluation
        self._callbacks = callbacks
        self._raises = raises
        self._now = agenda.first
        self._logged = self._evaluated = agenda.first
        self._chunk = 1
        self._patience = _Patience(evaluation.early_stopping if evaluation else None)

    def run(self, interrupted: threading.Event) -> str:
        """Train to the end of the agenda; return why it ended."""
        stopped = self._run(interrupted)
        if stopped == "exhausted" and self._evaluation and self._now > self._evaluated:
            self._look(evaluates=True)
        if self._now > max(self._logged, self._agenda.first):
            self._outputs.log(self._now, self._last_values())
        return stopped

    def _run(self, interrupted: threading.Event) -> str:
        while self._now < self._agenda.last:
            stopped = self._train(self._agenda.next_stop(self._now), interrupted)
            stopped = stopped or self._look(self._agenda.evaluates_at(self._now))
            if stopped:
                return stopped
        return "completed"

    def _train(self, goal: int, interrupted: threading.Event) -> str | None:
        while self._now < goal:
            if interrupted.is_set():
                return "interrupted"
            length = min(self._chunk, goal - self._now)
            start = time.perf_counter()
            self.carry, made = self._advance(self.carry, length)
            self._record(made)
            self._chunk = next_chunk(self._chunk, length, time.perf_counter() - start)
            if made < length:
                return "exhausted"
        return None

    def _record(self, made: int) -> None:
        steps = np.arange(self._now, self._now + made)
        values = read_rows(self.carry, self._metrics, steps)
        self._now += made
        if not made:
            return
        self.history.extend(steps + 1, values)
        shown = {"loss": float(values["loss"][-1])} if "loss" in values else {}
        self._outputs.advance(made, shown)
        if self._raises:
            _check_finite(steps + 1, values, self.history)

    def _look(self, evaluates: bool) -> str | None:
        values = self._last_values()
        if evaluates and self._evaluation:
            scores = self._evaluation.values(self.carry.state)
            self._evaluated = self._now
            taken = sorted(scores.keys() & self._metrics.keys())
            if taken:
                raise ValueError(f"need metric names that are not taken, got {taken}")
            self.history.extend(
                np.array([self._now]),
                {name: np.asarray(score)[None] for name, score in scores.items()},
            )
            values |= {k: v for k, v in scores.items() if np.ndim(v) == 0}
        self._outputs.log(self._now, values)
        self._logged = self._now
        if self._call_back(values) is STOP:
            return "callback"
        return self._patience.stops(values) if evaluates else None

    def _last_values(self) -> Values:
        return {name: self.history.last(name) for name in self._metrics}

    def _call_back(self, values: Values) -> Stop | None:
        for callback in self._callbacks:
            answer = callback(self._now, self.carry.state, values)
            if answer is STOP:
                return STOP
            if answer is not None:
                check_answer(answer)
                check_like(self.carry.state, answer)
                self.carry = Carry(snapshot(answer), self.carry.rows)
                self._now = int(answer.step)
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


class _Patience:
    """Counts evaluations without improvement."""

    def __init__(self, rule: EarlyStopping | None):
        self._rule = rule
        self._best = math.inf
        self._waited = 0

    def stops(self, values: Values) -> str | None:
        if self._rule is None:
            return None
        if self._rule.metric not in values:
            raise ValueError(
                f"need a metric among {sorted(values)} for early stopping, "
                f"got {self._rule.metric!r}"
            )
        value = values[self._rule.metric]
        cost = value if self._rule.mode == "min" else -value
        improves = cost < self._best - self._rule.min_delta
        self._best = cost if improves else self._best
        self._waited = 0 if improves else self._waited + 1
        return "early_stopping" if self._waited >= self._rule.patience else None


def _check_finite(steps: np.ndarray, values: Values, history: History) -> None:
    finite = values.get("is_finite")
    if finite is None:  # a step that is not from make_step
        finite = np.isfinite(values.get("loss", np.ones(1)))
    bad = np.flatnonzero(finite == 0)
    if bad.size:
        at = {name: float(value[bad[0]]) for name, value in values.items()}
        shown = ", ".join(f"{name}={value:.6g}" for name, value in at.items())
        raise NonFiniteError(
            f"need a finite loss and gradient, got step {steps[bad[0]]} with {shown}. "
            "Causes: NaN in the data, labels out of range, a learning rate too high; "
            'on_nonfinite="ignore" records it and goes on',
            int(steps[bad[0]]),
            history,
        )
