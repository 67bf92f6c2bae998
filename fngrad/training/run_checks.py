"""Calls of steps and reads of batches, with checks for all runs."""

from collections.abc import Callable
from typing import Any

import jax

from fngrad.data.dataset import Dataset
from fngrad.data.foreign_datasets import check_foreign
from fngrad.losses.weighted_sums import WeightedSum
from fngrad.programs.signatures import batch_of, explained, kind_of, name_of
from fngrad.training.state import TrainState
from fngrad.training.step import Step
from fngrad.types import Batch, Metrics, Params


def batch_at(data: Any, step: jax.Array) -> Batch:
    """Return the batch of a step from a dataset or a function ``step -> batch``.

    Raises:
        TypeError: if a function cannot be traced, see `fngrad.programs.signatures`.
    """
    return data.batch(step) if isinstance(data, Dataset) else batch_of(data, step)


def check_order(step: Any, data: Any) -> None:
    """Raise unless the arguments of a run are a step and data.

    Raises:
        TypeError: if a state or an optimizer is passed as the step, a state as the
            data, or a dataset of another library.
    """
    if isinstance(step, TrainState) or not callable(step):
        made = "a transform" if hasattr(step, "update") else type(step).__name__
        raise TypeError(
            f"need a step, then the state and the data, got {made} as the step: "
            "fngrad.make_step(loss_fn, optimizer) makes a step"
        )
    if isinstance(data, TrainState):
        raise TypeError("need a step, then the state and the data, got the state last")
    check_foreign(data)


def call_step(
    step: Step, state: TrainState, batch: Batch, call: Callable | None = None
) -> tuple[TrainState, Metrics]:
    """Call a step; explain the error if the function is not a step.

    Args:
        step: the step, named in messages; it is called unless ``call`` is given.
        state, batch: its arguments.
        call: another program of the step, such as that of its shapes.

    Raises:
        TypeError: if it is a loss, does not return (state, metrics), or cannot be
            traced.
    """
    with explained(step):
        try:
            made = (call or step)(state, batch)
        except Exception as error:
            if isinstance(state, TrainState) and _is_loss(step, state.params, batch):
                raise TypeError(_not_a_step(step, "a loss")) from error
            raise
    if not isinstance(made, tuple) or len(made) != 2:
        raise TypeError(_not_a_step(step, kind_of(made)))
    return made


def _not_a_step(step: Any, got: str) -> str:
    return (
        f"need a step (state, batch) -> (state, metrics), got {got} from "
        f"{name_of(step)}: fngrad.make_step(loss_fn, optimizer) makes a step of a loss"
    )


def _is_loss(fn: Any, params: Params, batch: Batch) -> bool:
    """Return whether a function maps parameters and a batch to a scalar."""
    try:
        out = jax.eval_shape(fn, params, batch)
    except Exception:  # it does not take parameters
        return False
    loss = out[0] if isinstance(out, tuple) and len(out) == 2 else out
    is_sum = isinstance(loss, WeightedSum)
    return is_sum or getattr(loss, "shape", None) == ()
