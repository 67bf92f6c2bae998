"""What is evaluated, which value is the best so far, when it is time to give up."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import fngrad.numerics as numerics
import fngrad.training.evaluation as evaluation
from fngrad.files.json_values import from_json_number
from fngrad.metrics.directions import direction
from fngrad.training import TrainState
from fngrad.types import Mode

Values = dict[str, Any]  # metrics by name


class EarlyStopping(NamedTuple):
    """End a run when a metric has not improved for some evaluations.

    The run ends with its last state, not with the best one; ``fit(keep_best=...)``
    keeps a checkpoint of that. At the last step of a run patience comes first.
    """

    metric: str = "val/loss"  # its name in the history
    patience: int = 10  # evaluations without improvement, >= 1
    mode: Mode | None = None  # which way is better; None: as the metric's name tells
    min_delta: float = 0.0  # what counts as an improvement, in units of the metric

    def check(self) -> None:
        """Raise unless every field is in range.

        Raises:
            TypeError: a metric that is not a name.
            ValueError: another field out of range.
        """
        if not isinstance(self.metric, str):
            raise TypeError(f"need the name of a metric, got {self.metric!r}")
        numerics.check_count("patience", self.patience, low=1)
        if not (isinstance(self.min_delta, Real) and 0 <= self.min_delta < math.inf):
            raise ValueError(
                "need min_delta as a finite number >= 0 in units of "
                f"{self.metric!r}, got min_delta={self.min_delta!r}"
            )
        numerics.check_mode(self.mode)


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
        early_stopping.check()
        return cls(metric_fn, data, early_stopping)

    def scalars(self, state: TrainState) -> list[str]:
        """Return the names of the scalars that it will measure, by tracing alone.

        Raises:
            TypeError, ValueError: as `fngrad.evaluate`.
        """
        shapes = evaluation.shapes(self.metric_fn, state, self.data)
        return [f"val/{name}" for name, shape in shapes.items() if shape.ndim == 0]

    def values(self, state: TrainState) -> Values:
        """Return the metrics of a state, under ``val/``."""
        scores = evaluation.evaluate(self.metric_fn, state, self.data)
        return {f"val/{name}": score for name, score in scores.items()}


class BestValue:
    """The best value so far of a metric; NaN is never better.

    Args:
        metric: its name among the values.
        mode: which way is better.
        min_delta: by how much a value must be better to count.
        notes: what `notes` gave in an earlier call; those of another metric say
            nothing.
    """

    def __init__(
        self,
        metric: str,
        mode: Mode,
        min_delta: float = 0.0,
        notes: dict[str, Any] | None = None,
    ):
        self._metric = metric
        self._mode = mode
        self._min_delta = min_delta
        known = notes if notes is not None and self.wrote(notes) else {"best": None}
        self._best = from_json_number(known["best"])

    def wrote(self, notes: dict[str, Any]) -> bool:
        """Say whether notes are of this metric."""
        return (notes["metric"], notes["mode"]) == (self._metric, self._mode)

    def notes(self) -> dict[str, Any]:
        """Return what a later call needs to know."""
        return {"metric": self._metric, "mode": self._mode, "best": self._best}

    def is_in(self, values: Values) -> bool:
        """Say whether the metric is among the values."""
        return self._metric in values

    def improves(self, values: Values) -> bool:
        """Take in the values of an evaluation; say whether they are the best so far.

        Raises:
            ValueError: the metric is not among them.
        """
        if not self.is_in(values):
            raise ValueError(
                f"need a metric among {sorted(values)} to look for the best, "
                f"got {self._metric!r}"
            )
        sign = 1 if self._mode == "min" else -1
        best = math.inf if self._best is None else sign * self._best
        is_better = sign * values[self._metric] < best - self._min_delta
        if is_better:
            self._best = float(values[self._metric])
        return is_better


class Patience:
    """Counts evaluations without improvement; without a rule it never ends.

    Args:
        rule: when to give up.
        notes: what `notes` gave in an earlier call; where it was of another metric,
            counting begins anew.
    """

    def __init__(self, rule: EarlyStopping | None, notes: dict[str, Any] | None = None):
        self._rule = rule
        self._waited = 0
        self._best: BestValue | None = None
        if rule is not None:
            mode = direction(rule.metric, rule.mode)
            self._best = BestValue(rule.metric, mode, rule.min_delta, notes)
            if notes and self._best.wrote(notes):
                self._waited = notes["waited"]

    @property
    def is_over(self) -> bool:
        """Whether the run should end."""
        return self._rule is not None and self._waited >= self._rule.patience

    def take(self, values: Values) -> None:
        """Count an evaluation.

        Raises:
            ValueError: the metric to look at is not there.
        """
        if self._best is not None:
            self._waited = 0 if self._best.improves(values) else self._waited + 1

    def notes(self) -> dict[str, Any] | None:
        """Return what a later call needs to go on counting."""
        if self._best is None:
            return None
        return {**self._best.notes(), "waited": self._waited}
