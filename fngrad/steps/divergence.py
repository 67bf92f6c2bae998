"""Steps that end where a run diverges."""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.training import Step, TrainState
from fngrad.types import Batch, Metrics, Scalar


def freeze_diverged(step: Step, bound: Scalar | None = None) -> Step:
    """Keep the last good state where a step would leave the finite numbers.

    A step is refused where a metric says that it is not finite, where it would put a
    NaN or an infinity into an entry of the state that was finite, or where the loss
    is not at most ``bound``. Then every bit of the old state is kept, its step counter
    too. A step is a function of the state, so the run makes the same refused step from
    then on: it is frozen, at no cost to the runs beside it under ``vmap``.

    Unlike `fngrad.skip_nonfinite`, which goes on with the next batch, this gives up.

    Args:
        step: from `fngrad.make_step`, or any step whose batch depends on the state
            alone, as in `fngrad.run` over a dataset.
        bound: the largest loss that counts as good; None is any finite one. It may be
            data: an array or a tracer.

    Returns:
        A step with the same metrics, those of the step that was refused;
        ``is_finite`` is false from the first refused step on, beyond a bound too.

    Raises:
        TypeError: the bound is no number.
        ValueError: while tracing, a bound without a metric ``loss``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.steps.divergence import freeze_diverged
        >>> optimizer = fg.sgd(3.0)  # |w| doubles and more with every step
        >>> step = fg.make_step(lambda w, batch: w**2, optimizer)
        >>> step = freeze_diverged(step, bound=100.0)
        >>> state = fg.init_state(jnp.array(1.0), optimizer, key=0)
        >>> state, history = fg.run(step, state, lambda step: (), 5)
        >>> print(state.step, state.params, history["is_finite"])
        2 25.0 [ True  True False False False]
    """
    numerics.check_number("bound", bound)

    def frozen(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(state, batch)
        goes_on = is_good(metrics, bound) & tree.stays_finite(state, new_state)
        return tree.where(goes_on, new_state, state), {**metrics, "is_finite": goes_on}

    return frozen


def is_good(metrics: Metrics, bound: Scalar | None = None) -> jax.Array:
    """Return whether a step's metrics say that it is finite, and its loss in bounds.

    Raises:
        ValueError: a bound without a metric ``loss``.
    """
    good = jnp.asarray(metrics.get("is_finite", True))
    if "loss" in metrics:
        good &= jnp.isfinite(metrics["loss"])
    if bound is None:
        return good
    if "loss" not in metrics:
        raise ValueError(f"need a metric loss to bound, got {sorted(metrics)}")
    loss = metrics["loss"]
    return good & (loss <= numerics.hyper(bound).astype(loss.dtype))
