"""Steps that skip a batch whose loss or gradient norm jumps."""

from typing import Any

import jax

import fngrad.numerics as numerics
import fngrad.training.step_metrics as step_metrics
import fngrad.transforms.queries as queries
from fngrad.programs.step_wrappers import wraps_step
from fngrad.training import Step, TrainState
from fngrad.transforms.metric_windows import (
    RecentValuesState,
    recorded,
    spikes_in,
)
from fngrad.types import Batch, Metrics, Scalar


def skip_spikes(step: Step, factor: Scalar = 10.0) -> Step:
    r"""Keep the old state where a metric is a spike against its running median.

    A value $v$ is a spike if

    $$v > m + \max(\texttt{factor} \cdot s, |m|)$$

    where $m$ is the median of the values of the steps before, as many as
    ``recent_values(window)`` keeps, and $s$ the median of their distances from $m$, as
    for `fngrad.callbacks.spike`. Then every bit of parameters, optimizer state and
    model state is kept, but for the recent values; the step counter advances, and with
    it the batch and the key. Spikes too are among the recent values: after a lasting
    rise of the level, steps are taken again as soon as half of the window is there.
    Before the window is full nothing is skipped. Values that are not finite are neither
    spikes nor kept; for them see `skip_bad_steps` and `fngrad.skip_nonfinite`.

    Args:
        step: a step whose optimizer has the part `fngrad.recent_values`, and that has
            its metrics.
        factor: >= 0; how far above the median, in units of $s$; of a normal
            distribution $s = 0.67 \sigma$. It may be data.

    Returns:
        A step with the same metrics and ``is_spike``, whether it was skipped.

    Raises:
        ValueError: if ``factor`` is negative; while tracing, if the optimizer has not
            exactly one part ``recent_values``, the step lacks one of its metrics, or
            has a metric ``is_spike``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.sgd(0.1), fg.recent_values(window=3))
        >>> step = fg.make_step(lambda w, batch: (w - batch) ** 2, optimizer)
        >>> step = fg.steps.skip_spikes(step)
        >>> state = fg.init_state(jnp.array(0.0), optimizer, key=0)
        >>> batches = jnp.array([1.0, 1.0, 1.0, 100.0, 1.0])
        >>> state, history = fg.run(step, state, lambda t: batches[t], 5)
        >>> print(history["is_spike"])
        [False False False  True False]

    References:
        Chowdhery et al., PaLM, 2022, section 5.1, https://arxiv.org/abs/2204.02311,
        skips the batches around a spike. Differs from it in: nothing is restarted, the
        batch is left out when it comes.
    """
    numerics.check_number("factor", factor, low=0.0)

    @wraps_step(step)
    def guarded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        recent = _recent(state.opt_state)
        new_state, metrics = step(state, batch)
        is_spike = spikes_in(recent, metrics, factor)
        kept = state._replace(step=numerics.next_step(state.step))
        chosen = jax.lax.cond(is_spike, lambda: kept, lambda: new_state)
        known = recorded(recent, metrics)
        opt_state = queries.replace(
            chosen.opt_state, RecentValuesState, lambda node: known
        )
        metrics = step_metrics.union([metrics, {"is_spike": is_spike}])
        return chosen._replace(opt_state=opt_state), metrics

    return guarded


def _recent(opt_state: Any) -> RecentValuesState:
    found = queries.find(opt_state, RecentValuesState)
    if len(found) != 1:
        raise ValueError(
            f"need an optimizer with one part recent_values, got {len(found)}: "
            "chain(optimizer, fngrad.recent_values(window=50))"
        )
    return found[0]
