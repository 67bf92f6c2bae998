"""What a run will measure, found by tracing, and what is watched of it."""

from typing import Any

from fngrad.fitting.save_rules import USUAL_BEST
from fngrad.fitting.validation import Evaluation
from fngrad.metrics.directions import Directed, Metric, directed, direction
from fngrad.training import TrainState


def settle_best(
    evaluation: Evaluation | None,
    best: Metric | None,
    metrics: dict[str, Any],
    state: TrainState,
) -> Directed | None:
    """Trace an evaluation; return by which metric the best checkpoint is kept.

    Args:
        evaluation: of the run.
        best: what was asked for.
        metrics: of the step.
        state: what will be evaluated.

    Raises:
        ValueError: a metric to stop or keep by that is not measured, or whose
            direction is not known; or as `fngrad.evaluate`.
        TypeError: as `fngrad.evaluate`.
    """
    if evaluation is not None:
        names = {*metrics, *evaluation.scalars(state)}
        rule = evaluation.early_stopping
        if rule is not None:
            _check_measured("early_stopping", rule.metric, names)
            direction(rule.metric, rule.mode)
        if best not in (None, USUAL_BEST):
            name = best if isinstance(best, str) else best[0]
            _check_measured("keep_best", name, names)
    return None if best is None else directed(best, "keep_best")


def _check_measured(argument: str, metric: str, names: set[str]) -> None:
    if metric not in names:
        raise ValueError(
            f"need a metric among {sorted(names)} for {argument}, got {metric!r}"
        )
