"""Evaluation during a run: the metrics with the prefix ``val/``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import fngrad.training.evaluation as training_evaluation
from fngrad.fitting.early_stopping import EarlyStopping, Values
from fngrad.metrics.directions import direction
from fngrad.training import TrainState


class Evaluation(NamedTuple):
    """What a run evaluates, and its rule for early stopping."""

    metric_fn: Callable[..., Any]
    data: Any
    early_stopping: EarlyStopping | None

    @classmethod
    def of(
        cls, metric_fn: Any, data: Any, early_stopping: EarlyStopping | None
    ) -> "Evaluation | None":
        """Return the evaluation that these arguments ask for, if any.

        Raises:
            ValueError: if one is given without another that it needs, or early
                stopping is out of range.
            TypeError: if ``early_stopping`` is not an `EarlyStopping`.
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

    def measured(self, state: TrainState, metrics: dict[str, Any]) -> set[str]:
        """Return the names of all scalars of a run, by tracing.

        Args:
            state: what will be evaluated.
            metrics: those of the step, by name.

        Raises:
            ValueError: if early stopping needs a metric that is not among them, or
                whose direction is unknown; or as `fngrad.evaluate`.
            TypeError: as `fngrad.evaluate`.
        """
        shapes = training_evaluation.shapes(self.metric_fn, state, self.data)
        scalars = [f"val/{name}" for name, shape in shapes.items() if shape.ndim == 0]
        names = {*metrics, *scalars}
        rule = self.early_stopping
        if rule is not None:
            check_measured("early_stopping", rule.metric, names)
            direction(rule.metric, rule.mode)
        return names

    def values(self, state: TrainState) -> Values:
        """Return the metrics of a state, with the prefix ``val/``."""
        scores = training_evaluation.evaluate(self.metric_fn, state, self.data)
        return {f"val/{name}": score for name, score in scores.items()}


def check_measured(argument: str, metric: str, names: set[str]) -> None:
    """Raise unless a run measures a metric.

    Args:
        argument: of `fngrad.fit`, which needs the metric.
        metric: its name.
        names: what the run measures.

    Raises:
        ValueError: if it does not.
    """
    if metric not in names:
        raise ValueError(
            f"need a metric among {sorted(names)} for {argument}, got {metric!r}"
        )
