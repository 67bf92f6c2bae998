"""Steps that tell the optimizer how the training goes."""

from typing import Any

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
        value: what should fall, a scalar. A value that should rise is given negated.

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

    return replace_parts(state, ReduceOnPlateauState, put, "reduce_on_plateau")


def plateau(step: Step, metric: str = "loss") -> Step:
    """Let every step's metric be observed, see `observe`.

    The value of one step counts from the next step on.

    Args:
        step: a step whose optimizer has the part `fngrad.reduce_on_plateau`.
        metric: the metric that should fall.

    Returns:
        A step with the same metrics.

    Raises:
        ValueError: while tracing, no such metric or no such part.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.adam(0.1), fg.reduce_on_plateau(patience=5))
        >>> step = fg.make_step(lambda w, batch: jnp.sum(w**2), optimizer)
        >>> step = fg.steps.plateau(step)
    """

    def watched(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(state, batch)
        if metric not in metrics:
            raise ValueError(f"need one of {sorted(metrics)} to observe, got {metric=}")
        return observe(new_state, metrics[metric]), metrics

    return watched
