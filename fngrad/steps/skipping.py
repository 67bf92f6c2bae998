"""Steps that leave a bad batch behind."""

import functools

import jax

import fngrad.numerics as numerics
import fngrad.training.step_metrics as step_metrics
import fngrad.tree as tree
from fngrad.steps.divergence import is_good
from fngrad.training import Step, TrainState
from fngrad.types import Batch, Metrics


def skip_bad_steps(step: Step) -> Step:
    """Keep the old state where a step would leave the finite numbers, and go on.

    A step is skipped where a metric says that it is not finite, or where it would put
    a NaN or an infinity into an entry of the state that was finite. Then every bit of
    parameters, optimizer state and model state is kept; the step counter advances,
    and with it batch and key. On a run that stays finite nothing changes, by a bit.

    Unlike the transform `fngrad.skip_nonfinite` it guards the model state too and
    works with steps of every kind. Unlike `fngrad.steps.freeze_diverged` it goes on.

    Args:
        step: from `fngrad.make_step`, `fngrad.steps`, or any other with a metric
            ``loss`` or ``is_finite``.

    Returns:
        A step with the same metrics and ``skipped``; ``is_finite`` is false where it
        is true. Its ``__wrapped__`` is the step that was given.

    Raises:
        ValueError: while tracing, the step has a metric ``skipped``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.steps.skipping import skip_bad_steps
        >>> optimizer = fg.sgd(0.5)
        >>> step = fg.make_step(lambda w, batch: (w - batch) ** 2, optimizer)
        >>> state = fg.init_state(jnp.array(0.0), optimizer, key=0)
        >>> batches = jnp.array([1.0, jnp.nan, 3.0])
        >>> step = skip_bad_steps(step)
        >>> state, history = fg.run(step, state, lambda t: batches[t], 3)
        >>> print(state.params, state.step, history["skipped"])
        3.0 3 [False  True False]
    """

    @functools.wraps(step)
    def guarded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(state, batch)
        goes_on = is_good(metrics) & tree.stays_finite(state, new_state)
        kept = state._replace(step=numerics.next_step(state.step))
        # Unlike a select, a branch is not rounded together with what made its inputs.
        chosen = jax.lax.cond(goes_on, lambda: new_state, lambda: kept)
        told = step_metrics.union([metrics, {"skipped": ~goes_on}])
        return chosen, {**told, "is_finite": goes_on}

    return guarded
