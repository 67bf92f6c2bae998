"""The last values of a step's metrics, kept in the optimizer's state.

A transform never sees the loss. `fngrad.steps.skip_spikes` records the values, and the
state makes that exact across a resume.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.transforms.core import Transform, chain
from fngrad.types import Metrics, OptState, Params, Updates


class RecentValuesState(NamedTuple):
    """State of `recent_values`."""

    step: jax.Array  # int32, shape (); how many steps have been recorded
    values: dict[str, jax.Array]  # float, shape (window,), by metric; 0 at first


def recent_values(
    window: int = 50, metrics: Sequence[str] = ("loss", "grad_norm")
) -> Transform:
    """Keep the last values of a step's metrics, for `fngrad.steps.skip_spikes`.

    Updates pass unchanged.

    Args:
        window: how many steps, an int >= 1.
        metrics: of the step.

    Raises:
        TypeError: if ``metrics`` is a string or holds something else than strings.
        ValueError: if the window is not an int >= 1, or there are no metrics.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.adam(1e-3), fg.recent_values(window=50))
    """
    window = numerics.check_count("window", window, 1)
    is_list = not isinstance(metrics, str)
    if not is_list or not all(isinstance(name, str) for name in metrics):
        raise TypeError(f"need a list of metrics' names, got {metrics=}")
    if not metrics:
        raise ValueError(f"need at least one metric, got {metrics=}")
    names = tuple(metrics)

    def init(params: Params) -> RecentValuesState:
        blank = {n: jnp.zeros(window, jnp.result_type(float)) for n in names}
        return RecentValuesState(numerics.first_step(), blank)

    def update(
        updates: Updates, state: OptState, params: Params
    ) -> tuple[Updates, OptState]:
        return updates, state

    return chain(Transform(init, update, "recent_values"))


def spikes_in(
    state: RecentValuesState, metrics: Metrics, factor: float | jax.Array
) -> jax.Array:
    r"""Return whether a metric is far above the median of its recent values.

    Values that are not finite are not spikes. Without a full window there are none.

    Raises:
        ValueError: if the step has not these metrics.
    """
    is_spike = jnp.zeros((), bool)
    for name, values in state.values.items():
        median = jnp.median(values)
        spread = jnp.median(jnp.abs(values - median))
        rise = numerics.hyper(factor).astype(values.dtype) * spread
        bound = median + jnp.maximum(rise, jnp.abs(median))
        value = _value(metrics, name, values)
        is_spike |= jnp.isfinite(value) & (value > bound)
    return is_spike & (state.step >= len(next(iter(state.values.values()))))


def recorded(state: RecentValuesState, metrics: Metrics) -> RecentValuesState:
    """Return the state with a step's metrics in place of the oldest.

    A step with a value that is not finite is left out.
    """
    new = {name: _value(metrics, name, x) for name, x in state.values.items()}
    is_finite = jnp.all(jnp.isfinite(jnp.stack(list(new.values()))))
    values = {
        name: jnp.where(is_finite, x.at[state.step % len(x)].set(new[name]), x)
        for name, x in state.values.items()
    }
    step = jnp.where(is_finite, numerics.next_step(state.step), state.step)
    return RecentValuesState(step, values)


def _value(metrics: Metrics, name: str, like: jax.Array) -> jax.Array:
    if name not in metrics:
        raise ValueError(
            f"need metrics of the step for recent_values, among {sorted(metrics)}, "
            f"got {name!r}"
        )
    return jnp.asarray(metrics[name]).astype(like.dtype)
