"""Steps that tell the optimizer how the training goes."""

from collections.abc import Callable
from typing import Any

from fngrad.metrics.directions import Metric, directed, direction
from fngrad.steps.core import replace_parts
from fngrad.training import Step, TrainState
from fngrad.transforms.plateau import ReduceOnPlateauState, add_observation
from fngrad.types import Batch, Metrics, Scalar, Tree


def observe(state: Tree, value: Scalar) -> Tree:
    """Return the state with a value for `fngrad.reduce_on_plateau` to read.

    For values that come between steps, such as a validation loss in a callback of
    `fngrad.fit`.

    Args:
        state: an optimizer's state or anything that holds one, such as a TrainState.
        value: what should fall, a scalar; or what should rise, for the optimizer's
            ``reduce_on_plateau(mode="max")``.

    Raises:
        ValueError: the optimizer has no part ``reduce_on_plateau``, or the value is
            not a scalar.

    Example:
        >>> import fngrad as fg
        >>> def watch(step, state, values):
        ...     if "val/loss" in values:
        ...         return fg.steps.observe(state, values["val/loss"])
    """

    def put(node: Any) -> Any:
        return add_observation(node, value)

    return _put(state, put)


def plateau(step: Step, metric: Metric = "loss") -> Step:
    """Let every step's metric be observed, see `observe`.

    The value of one step counts from the next step on.

    Args:
        step: a step whose optimizer has the part `fngrad.reduce_on_plateau`.
        metric: the metric to observe, a name that tells which way is better (see
            `fngrad.metrics.directions`) or a pair of it and ``"min"`` or ``"max"``. The
            mode of ``reduce_on_plateau(mode=)`` tells too.

    Returns:
        A step with the same metrics.

    Raises:
        ValueError: another form; while tracing, no such metric or no such part, a
            direction that nothing tells, or two that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.adam(0.1), fg.reduce_on_plateau(patience=5))
        >>> step = fg.make_step(lambda w, batch: jnp.sum(w**2), optimizer)
        >>> step = fg.steps.plateau(step)
    """

    name, asked = (metric, None) if isinstance(metric, str) else directed(metric)

    def watched(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(state, batch)
        if name not in metrics:
            raise ValueError(f"need one of {sorted(metrics)} to observe, got {metric=}")

        def put(node: Any) -> Any:
            if asked and node.mode not in (None, asked):
                raise ValueError(
                    f"need one direction for {name!r}, got {asked!r} here and "
                    f"{node.mode!r} in reduce_on_plateau"
                )
            is_negated = node.mode is None and direction(name, asked) == "max"
            return add_observation(node, (-1 if is_negated else 1) * metrics[name])

        return _put(new_state, put), metrics

    return watched


def _put(state: Tree, fn: Callable[[Any], Any]) -> Tree:
    return replace_parts(state, ReduceOnPlateauState, fn, "reduce_on_plateau")
