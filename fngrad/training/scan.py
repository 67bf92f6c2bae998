"""A run: a fold of steps, as one pure function.

It can be jitted, differentiated, and mapped over seeds or hyperparameters. The batch of
step t is a function of the data and t, so a run is a function of its first state.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.training.metric_folds as metric_folds
import fngrad.training.step_metrics as step_metrics
import fngrad.transforms.evaluation_point as evaluation_point
from fngrad.data.dataset import Dataset
from fngrad.sharding.constraints import gathered, split
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.sharding.rules import rule_of_function
from fngrad.training.run_checks import batch_at, call_step, check_order
from fngrad.training.state import TrainState, check_train_state
from fngrad.training.step import Step
from fngrad.types import Metrics


def run(
    step: Step,
    state: TrainState,
    data: Any,
    num_steps: int,
    *,
    metric_fn: Callable[..., Any] | None = None,
    eval_data: Any = None,
    eval_every: int | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Train for ``num_steps`` steps, as one pure function.

    Under ``jit`` pass the dataset as an argument: a captured dataset becomes a constant
    of the program. Under ``vmap`` it trains many runs at once.

    Args:
        step: from `make_step`, or any function with its signature.
        state: the first state.
        data: a dataset, or a function ``step -> batch``.
        num_steps: how many steps to make, a Python int >= 0.
        metric_fn: see `fngrad.evaluate`; its parameters are `fngrad.eval_params`,
            its model state is `fngrad.eval_model_state`.
            `fngrad.mixed_precision` gives it another precision.
        eval_data: arrays or a dataset, all of which is evaluated.
        eval_every: the number of steps between evaluations; the last evaluation is at
            the end. ``None`` means at the end only.

    Returns:
        The last state and the history: each metric of the step with shape
        ``(num_steps,)``, each evaluation metric under ``val/`` with shape
        ``(ceil(num_steps / eval_every), ...)``.

    Raises:
        TypeError: if ``data`` is neither a dataset nor a function, ``step`` is a loss
            or another function that is not a step, ``state`` is not a TrainState, or a
            function cannot be traced.
        ValueError: if ``num_steps`` is negative, ``eval_every`` below 1, or only one
            of ``metric_fn`` and ``eval_data`` is given.
    """
    num_steps = numerics.check_count("num_steps", num_steps, 0, numerics.MAX_STEP)
    if (metric_fn is None) != (eval_data is None):
        raise ValueError("need both metric_fn and eval_data, or neither")
    if eval_every is not None:
        eval_every = numerics.check_count("eval_every", eval_every, 1)
    check_order(step, data)
    check_train_state(state)
    if not (isinstance(data, Dataset) or callable(data)):
        raise TypeError(
            f"need a dataset or a function of the step, got {type(data).__name__}: "
            "fngrad.data.from_arrays(arrays, batch_size) makes a dataset; batches of a "
            "source or an iterable come from the host, where fngrad.fit takes them"
        )

    def advance(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        batch = split(batch_at(data, state.step), auto_mesh_of(state))
        return call_step(step, state, batch)

    if metric_fn is None:
        return jax.lax.scan(advance, state, None, num_steps)

    every = num_steps if eval_every is None else eval_every

    def block(state: TrainState, length: int) -> tuple[TrainState, Any]:
        state, history = jax.lax.scan(advance, state, None, length)
        scores = metric_folds.fold(
            gathered(metric_fn, rule_of_function(step)),
            evaluation_point.eval_params(state),
            evaluation_point.eval_model_state(state),
            metric_folds.arrays_of(eval_data),
        )
        return state, (history, {f"val/{name}": v for name, v in scores.items()})

    return _run_blocks(block, state, num_steps, max(every, 1))


def _run_blocks(
    block: Callable[[TrainState, int], tuple[TrainState, Any]],
    state: TrainState,
    num_steps: int,
    every: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Scan over whole blocks, then run the shorter last one."""
    whole, rest = divmod(num_steps, every)
    state, (history, scores) = jax.lax.scan(
        lambda state, _: block(state, every), state, None, whole
    )
    history = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), history)
    if rest:
        state, (more, last) = block(state, rest)
        history = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), history, more)
        scores = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), scores, last)
    return state, step_metrics.union([history, scores])
