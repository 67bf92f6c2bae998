"""Steps that keep the last good state of a run that diverges."""

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.programs.step_wrappers import wraps_step
from fngrad.training import Step, TrainState
from fngrad.training.divergence import has_diverged
from fngrad.types import Batch, Metrics, Scalar


def freeze_diverged(step: Step, bound: Scalar | None = None) -> Step:
    """Keep the last good state of a run that diverges.

    A step is refused if its metrics show divergence (see `has_diverged`), or if it
    would put a NaN or an infinity into an entry of the state that was finite. Then
    every bit of the old state is kept, also of its step counter. A step is a function
    of the state, so all later steps are the same refused step: the run is frozen,
    without an effect on other runs under ``vmap``.

    `fngrad.skip_nonfinite` continues with the next batch instead.

    Args:
        step: from `fngrad.make_step`, or any step whose batch depends only on the
            state, as in `fngrad.run` over a dataset.
        bound: the largest good loss; None allows any finite loss. It may be data: an
            array or a tracer.

    Returns:
        A step with the same metrics, those of the refused step; ``is_finite`` is
        false from the first refused step on, also beyond a bound.

    Raises:
        TypeError: if the bound is not a number.
        ValueError: while tracing, if there is a bound, but no metric ``loss``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.steps.frozen_runs import freeze_diverged
        >>> optimizer = fg.sgd(3.0)  # |w| doubles and more with every step
        >>> step = fg.make_step(lambda w, batch: w**2, optimizer)
        >>> step = freeze_diverged(step, bound=100.0)
        >>> state = fg.init_state(jnp.array(1.0), optimizer, key=0)
        >>> state, history = fg.run(step, state, lambda step: (), 5)
        >>> print(state.step, state.params, history["is_finite"])
        2 25.0 [ True  True False False False]
    """
    numerics.check_number("bound", bound, optional=True)

    @wraps_step(step)
    def frozen(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(state, batch)
        is_good = ~has_diverged(metrics, bound) & tree.stays_finite(state, new_state)
        return tree.where(is_good, new_state, state), {**metrics, "is_finite": is_good}

    return frozen
