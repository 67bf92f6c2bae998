"""When to stop early, and the best value so far."""

import math
from numbers import Real
from typing import Any, NamedTuple

import fngrad.numerics as numerics
from fngrad.files.json_values import from_json_number
from fngrad.metrics.directions import direction, unknown_metric
from fngrad.types import Mode

Values = dict[str, Any]  # metrics by name


class EarlyStopping(NamedTuple):
    """End a run when a metric has not improved for some evaluations.

    The run ends with its last state; ``fit(restore_best=True)`` returns the best one,
    which is also in ``history.best``. A run whose patience ends at its last step counts
    as stopped early.
    """

    metric: str = "val/loss"  # its name in the history
    patience: int = 10  # evaluations without improvement, >= 1
    mode: Mode | None = None  # which way is better; None: as the metric's name implies
    min_delta: float = 0.0  # the least improvement that counts, in the metric's units

    def check(self) -> None:
        """Raise unless every field is in range.

        Raises:
            TypeError: if ``metric`` is not a string.
            ValueError: if another field is out of range.
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


class BestValue:
    """The best value of a metric so far; NaN is never better.

    Args:
        metric: its name among the values.
        mode: which way is better.
        min_delta: by how much a value must be better to count.
        notes: what `notes` returned in an earlier call; notes of another metric are
            ignored.
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
        """Return whether notes are of this metric and mode."""
        return (notes["metric"], notes["mode"]) == (self._metric, self._mode)

    def notes(self) -> dict[str, Any]:
        """Return what a later call needs, in JSON's types."""
        return {"metric": self._metric, "mode": self._mode, "best": self._best}

    def is_in(self, values: Values) -> bool:
        """Return whether the metric is among the values."""
        return self._metric in values

    def update(self, values: Values) -> bool:
        """Record the values of an evaluation; return whether they are the best so far.

        Raises:
            ValueError: if the metric is not among them.
        """
        if not self.is_in(values):
            raise unknown_metric(self._metric, values, " to compare evaluations by")
        sign = 1 if self._mode == "min" else -1
        best = math.inf if self._best is None else sign * self._best
        is_better = sign * values[self._metric] < best - self._min_delta
        if is_better:
            self._best = float(values[self._metric])
        return is_better


class Patience:
    """Counts evaluations without improvement; without a rule it never runs out.

    Args:
        rule: when to stop.
        notes: what `notes` returned in an earlier call; after a change of the metric
            the count starts again from 0.
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

    @property
    def state(self) -> str:
        """How long the metric has not improved, and for how long it may, in words."""
        if self._rule is None:
            return "without a rule"
        return (
            f"{self._rule.metric} has not improved in the last {self._waited} "
            f"evaluations, with patience={self._rule.patience}"
        )

    def update(self, values: Values) -> None:
        """Count an evaluation; at step 0 there are no metrics of the step to count."""
        if self._best is not None and self._best.is_in(values):
            self._waited = 0 if self._best.update(values) else self._waited + 1

    def notes(self) -> dict[str, Any] | None:
        """Return what a later call needs to continue the count."""
        if self._best is None:
            return None
        return {**self._best.notes(), "waited": self._waited}
