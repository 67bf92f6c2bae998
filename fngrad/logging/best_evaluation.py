"""The best evaluation of a run, with a copy of its state on the host."""

from typing import Any

import jax
import numpy as np

import fngrad.tree as tree
from fngrad.metrics.directions import Directed
from fngrad.training import TrainState


class BestEvaluation:
    """The best evaluation of a run: its step, its metrics and the state it measured.

    Args:
        step: how many steps had been made.
        metrics: floats by name, as loggers get them.
        state: what was evaluated; it is copied to the host and may be donated.
        by: the metric that decides which evaluation is the best, and its direction.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.logging.best_evaluation import BestEvaluation
        >>> state = fg.init_state(jnp.ones(2), fg.sgd(0.1), key=0)
        >>> best = BestEvaluation(0, {"val/loss": 0.5}, state, ("val/loss", "min"))
        >>> best, best.state.params
        (BestEvaluation(step=0, val/loss=0.5), Array([1., 1.], dtype=float32))
    """

    def __init__(
        self, step: int, metrics: dict[str, Any], state: TrainState, by: Directed
    ):
        self.step = step
        self.by = by
        self.metrics: dict[str, Any] = dict(metrics)
        leaves, self._structure = jax.tree.flatten(state)
        for leaf in leaves:
            if isinstance(leaf, jax.Array) and not tree.is_key(leaf):
                leaf.copy_to_host_async()
        self._leaves = [_HostLeaf(leaf) for leaf in leaves]

    @property
    def state(self) -> TrainState:
        """A new copy of the state, on the devices that the original was on.

        After pickling it is on the default device.
        """
        return self._structure.unflatten([leaf.placed() for leaf in self._leaves])

    def __repr__(self) -> str:
        values = [f", {name}={value:.4g}" for name, value in self.metrics.items()]
        return f"BestEvaluation(step={self.step}{''.join(values)})"


class _HostLeaf:
    """An array on the host, in memory of its own."""

    def __init__(self, leaf: Any):
        self._impl = jax.random.key_impl(leaf) if tree.is_key(leaf) else None
        self._data = np.array(leaf if self._impl is None else jax.random.key_data(leaf))
        is_committed = isinstance(leaf, jax.Array) and leaf.committed
        self._sharding = leaf.sharding if is_committed else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sharding": None}  # devices cannot be pickled

    def placed(self) -> jax.Array:
        leaf = jax.device_put(self._data, self._sharding, may_alias=False)
        if self._impl is None:
            return leaf
        return jax.random.wrap_key_data(leaf, impl=self._impl)
