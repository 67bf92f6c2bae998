"""Metrics for `fngrad.reduce_on_plateau`: from every step, or from in between."""

from collections.abc import Callable
from typing import Any

import fngrad.transforms.queries as queries
from fngrad.metrics.directions import Metric, directed, direction
from fngrad.programs.step_wrappers import wraps_step
from fngrad.training import Step, TrainState
from fngrad.transforms.plateau import ReduceOnPlateauState, add_observation
from fngrad.types import Batch, Metrics, Scalar, Tree


def observe(state: Tree, value: Scalar) -> Tree:
    """Return the state with a value for `fngrad.reduce_on_plateau`.

    Use it for values that are computed between steps, such as a validation loss in a
    callback of `fngrad.fit`.

    Args:
        state: an optimizer's state or anything that contains one, such as a
            TrainState.
        value: a scalar that should fall; with ``reduce_on_plateau(mode="max")``, one
            that should rise.

    Raises:
        ValueError: if the optimizer has no part ``reduce_on_plateau``, or the value is
            not a scalar.

    Example:
        >>> import fngrad as fg
        >>> def watch(step, state, values):
        ...     if "val/loss" in values:
        ...         return fg.steps.observe(state, values["val/loss"])
    """

    return _replace(state, lambda node: add_observation(node, value))


def plateau(step: Step, metric: Metric = "loss") -> Step:
    """Observe a metric of every step, see `observe`.

    The value of a step is used from the next step on.

    Args:
        step: a step whose optimizer has the part `fngrad.reduce_on_plateau`.
        metric: the metric to observe: a name whose direction is known (see
            `fngrad.metrics.directions`), or a pair of a name and ``"min"`` or
            ``"max"``. ``reduce_on_plateau(mode=)`` gives the direction too.

    Returns:
        A step with the same metrics.

    Raises:
        ValueError: if ``metric`` has another form; while tracing, if there is no such
            metric or no such part, or the direction is unknown or contradictory.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.adam(0.1), fg.reduce_on_plateau(patience=5))
        >>> step = fg.make_step(lambda w, batch: jnp.sum(w**2), optimizer)
        >>> step = fg.steps.plateau(step)
    """

    name, mode = (metric, None) if isinstance(metric, str) else directed(metric)

    @wraps_step(step)
    def watched(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(state, batch)
        if name not in metrics:
            raise ValueError(f"need one of {sorted(metrics)} to observe, got {metric=}")

        def observed(node: Any) -> Any:
            if mode and node.mode not in (None, mode):
                raise ValueError(
                    f"need one direction for {name!r}, got {mode!r} here and "
                    f"{node.mode!r} in reduce_on_plateau"
                )
            is_negated = node.mode is None and direction(name, mode) == "max"
            return add_observation(node, (-1 if is_negated else 1) * metrics[name])

        return _replace(new_state, observed), metrics

    return watched


def _replace(state: Tree, fn: Callable[[Any], Any]) -> Tree:
    return queries.replace(state, ReduceOnPlateauState, fn, part="reduce_on_plateau")
