"""Evaluation during a run: the metrics with the prefix ``val/``."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import fngrad.training.evaluation as training_evaluation
from fngrad.data.sources import Source
from fngrad.fitting.coordination import Coordination
from fngrad.fitting.early_stopping import EarlyStopping, Values
from fngrad.metrics.directions import Directed, direction, unknown_metric
from fngrad.programs.jaxprs import Program
from fngrad.training import TrainState


class Measured(NamedTuple):
    """What a run measures."""

    names: set[str]  # of its scalars, those of the step too
    program: Program  # of the evaluation
    shapes: dict[str, Any]  # and dtypes of the metrics that it returns
    data: Any  # that it reads


class Evaluation(NamedTuple):
    """What a run evaluates, its rule for early stopping, and what it does with both."""

    metric_fn: Callable[..., Any]
    data: Any
    early_stopping: EarlyStopping | None
    begins: bool = False  # with an evaluation of the state of step 0
    restores: bool = False  # the state of the best evaluation at the end
    watched: Directed | None = None  # by which metric an evaluation is the best

    @classmethod
    def of(
        cls,
        metric_fn: Any,
        data: Any,
        early_stopping: EarlyStopping | None,
        eval_first: bool = False,
        restore_best: bool = False,
    ) -> "Evaluation | None":
        """Return the evaluation that these arguments ask for, if any.

        Raises:
            ValueError: if one is given without another that it needs, or early
                stopping is out of range.
            TypeError: if ``early_stopping`` is not an `EarlyStopping`, or an argument
                that must be a bool is not.
        """
        flags = {"eval_first": eval_first, "restore_best": restore_best}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise TypeError(f"need {name}=True or False, got {flag!r}")
        if (metric_fn is None) != (data is None):
            raise ValueError("need both metric_fn and eval_data, or neither")
        asked = [f"{name}=True" for name, flag in flags.items() if flag]
        if early_stopping is not None:
            asked = ["early stopping", *asked]
        if metric_fn is None:
            if asked:
                raise ValueError(f"need metric_fn and eval_data for {asked[0]}")
            return None
        if early_stopping is not None:
            if not isinstance(early_stopping, EarlyStopping):
                raise TypeError(f"need an EarlyStopping, got {early_stopping!r}")
            early_stopping.check()
        return cls(metric_fn, data, early_stopping, eval_first, restore_best)

    def watching(
        self, kept: Directed | None, default: Directed, measured: set[str] | None
    ) -> "Evaluation":
        """Return the evaluation with the metric that decides which one is the best.

        It is that of ``keep_best``; where that is the default, or None, it is that of
        early stopping.

        Args:
            kept: ``keep_best`` with its direction.
            default: the default of ``keep_best``, which needs not be measured.
            measured: the names of the run's metrics.

        Raises:
            ValueError: if ``restore_best`` is given and nothing decides.
        """
        rule, watched = self.early_stopping, kept
        if rule is not None and kept in (None, default):
            watched = rule.metric, direction(rule.metric, rule.mode)
        names = measured or set()
        if watched is not None and watched[0] not in names:
            watched = None
        if self.restores and watched is None:
            raise ValueError(
                "need a metric that decides which evaluation is the best for "
                f"restore_best=True, got keep_best={kept!r} and the metrics "
                f'{sorted(names)}; give keep_best=(metric, "min" or "max") or '
                "early_stopping=fngrad.EarlyStopping(metric)"
            )
        return self._replace(watched=watched)

    def measured(self, state: TrainState, metrics: dict[str, Any]) -> Measured:
        """Return what a run measures, by tracing.

        Args:
            state: what will be evaluated.
            metrics: those of the step, by name.

        Raises:
            ValueError: if early stopping needs a metric that is not among them, or
                whose direction is unknown; or as `fngrad.evaluate`.
            TypeError: as `fngrad.evaluate`.
        """
        traced = training_evaluation.traced(self.metric_fn, state, self.data)
        program, shapes = traced
        scalars = [f"val/{name}" for name, shape in shapes.items() if shape.ndim == 0]
        names = {*metrics, *scalars}
        rule = self.early_stopping
        if rule is not None:
            check_measured("early_stopping", rule.metric, names)
            direction(rule.metric, rule.mode)
        return Measured(names, program, shapes, self.data)

    def values(self, state: TrainState, peers: Coordination) -> Values:
        """Return the metrics of a state, with the prefix ``val/``.

        Raises:
            Exception: what reading a source raises.
            PeerError: if it raised in another process.
        """
        data = self.data
        if isinstance(data, Source) and not peers.is_alone:
            data = dataclasses.replace(data, read=peers.telling(data.read))
        scores = training_evaluation.evaluate(self.metric_fn, state, data)
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
        raise unknown_metric(metric, names, f" for {argument}")
