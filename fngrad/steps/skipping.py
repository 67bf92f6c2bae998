"""Steps that skip a bad batch."""

import jax
from jax.ad_checkpoint import checkpoint_name

import fngrad.numerics as numerics
import fngrad.training.step_metrics as step_metrics
import fngrad.tree as tree
from fngrad.programs.step_wrappers import wraps_step
from fngrad.training import Step, TrainState
from fngrad.training.divergence import has_diverged
from fngrad.types import Batch, Metrics, Path


def skip_bad_steps(step: Step) -> Step:
    """Keep the old state where a step is not finite, and continue.

    A step is skipped if its loss or its metric ``is_finite`` is bad, or if it would put
    a NaN or an infinity into an entry of the state that was finite. Then every bit of
    parameters, optimizer state and model state is kept; the step counter advances,
    and with it the batch and the key. A run that stays finite keeps every bit.

    The transform `fngrad.skip_nonfinite` does not check the model state, and needs no
    step of its own. `fngrad.steps.freeze_diverged` stops instead of continuing.

    Args:
        step: from `fngrad.make_step`, `fngrad.steps`, or any other with a metric
            ``loss`` or ``is_finite``.

    Returns:
        A step with the same metrics and ``skipped``; ``is_finite`` is false where
        ``skipped`` is true. Its ``__wrapped__`` is the original step.

    Raises:
        ValueError: while tracing, if the step has a metric ``skipped``.

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

    @wraps_step(step)
    def guarded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(state, batch)
        is_good = ~has_diverged(metrics) & tree.stays_finite(state, new_state)
        new_state = tree.map_with_path(_named, new_state)
        kept = state._replace(step=numerics.next_step(state.step))
        # Unlike a select, a branch is not fused with the operations that precede it.
        chosen = jax.lax.cond(is_good, lambda: new_state, lambda: kept)
        metrics = step_metrics.union([metrics, {"skipped": ~is_good}])
        return chosen, {**metrics, "is_finite": is_good}

    return guarded


def _named(path: Path, x: jax.Array) -> jax.Array:
    """Name a leaf of the state that a step returns in the traced program."""
    return x if tree.is_key(x) else checkpoint_name(x, f"state/{path}")
