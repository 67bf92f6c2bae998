"""The best evaluation so far: which metric decides, what a checkpoint holds of it."""

from typing import Any

from fngrad.checkpoint import Checkpoints, Saved, rebuild
from fngrad.checkpoint.device_transfer import HostTree
from fngrad.files.json_values import from_json_number
from fngrad.fitting.best_evaluation import BestEvaluation
from fngrad.fitting.early_stopping import BestValue, Values
from fngrad.logging.history import History
from fngrad.metrics.directions import Directed
from fngrad.programs.caller_warnings import warn
from fngrad.training import TrainState

PART = "best"  # of a checkpoint, see `BestSoFar.content`
NOTE = "best_evaluation"


class BestSoFar:
    """Keeps the best evaluation of a run in ``history.best``.

    The state of a best evaluation is usually a checkpoint of its own. Where it is not,
    because the checkpoints go by another metric or a callback replaced the state after
    its evaluation, every checkpoint holds it as a further part.

    Args:
        rule: the metric that decides, and which way is better; None keeps none.
        has_checkpoint: whether every best evaluation becomes a checkpoint.
        history: the one to keep it in; it holds that of an earlier call.
        notes: of the checkpoint that the call resumes from.
    """

    def __init__(
        self,
        rule: Directed | None,
        has_checkpoint: bool,
        history: History,
        notes: dict[str, Any],
    ):
        self._rule = rule
        self._has_checkpoint = has_checkpoint
        self._history = history
        known = notes.get(NOTE)
        self._value = BestValue(*rule, notes=known) if rule else None
        is_known = bool(self._value and known and self._value.wrote(known))
        if not is_known or history.best is None:
            history.best = known = None
            self._value = BestValue(*rule) if rule else None
        self._is_part = bool(known and known["is_part"]) or not has_checkpoint
        self._taken: BestEvaluation | None = None  # whose state the run has at its step

    def update(self, values: Values, step: int, state: TrainState) -> None:
        """Record an evaluation; its state is copied if it is the best so far."""
        if not (self._rule and self._value and self._value.is_in(values)):
            return
        if self._value.update(values):
            self._taken = BestEvaluation(step, values, state, self._rule)
            self._history.best = self._taken
            self._is_part = not self._has_checkpoint

    def replace(self, step: int) -> None:
        """Record that a callback replaced the state of a step."""
        best = self._history.best
        self._is_part |= best is not None and best.step == step
        self._taken = None

    def notes(self) -> dict[str, Any]:
        """Return what a later call needs, in JSON's types."""
        best = self._history.best
        if self._value is None or best is None:
            return {}
        found = {"step": best.step, "metrics": best.metrics, "is_part": self._is_part}
        return {NOTE: {**self._value.notes(), **found}}

    def state_at(self, step: int) -> HostTree | None:
        """Return the run's state at a step, if the best evaluation has copied it."""
        taken = self._taken
        return taken.host if taken is not None and taken.step == step else None

    def content(self) -> dict[str, HostTree]:
        """Return the part of a checkpoint that holds the best state, if it is needed.

        The best state that is a checkpoint of its own needs none.
        """
        best = self._history.best
        if not self._is_part or best is None:
            return {}
        assert isinstance(best, BestEvaluation)
        return {PART: best.host}


def read_best(
    saved: Saved, checkpoints: Checkpoints, like: TrainState
) -> BestEvaluation | None:
    """Return the best evaluation up to a checkpoint, if it notes one.

    Args:
        saved: the checkpoint.
        checkpoints: the folder, which may hold the best state as another one.
        like: the caller's state.

    Returns:
        The evaluation; None, with a warning, if its state is not there.
    """
    known = (saved.notes or {}).get(NOTE)
    if known is None:
        return None
    step, part = known["step"], PART if known["is_part"] else "state"
    is_here = known["is_part"] or step == saved.step
    found = saved if is_here else checkpoints.at(step, {"state": like})
    if found is None:
        warn(
            f"the best evaluation, of step {step}, has no undamaged checkpoint; the "
            f"best is taken from the evaluations after step {saved.step}"
        )
        return None
    metrics = {name: from_json_number(x) for name, x in known["metrics"].items()}
    by = known["metric"], known["mode"]
    return BestEvaluation(step, metrics, rebuild(found, like, part), by)
