"""The best evaluation of a run, with a copy of its state on the host."""

from typing import Any, NamedTuple

import jax

from fngrad.checkpoint.device_transfer import HostTree, committed_to, place, take
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
        >>> from fngrad.fitting.best_evaluation import BestEvaluation
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
        self._places = [_Place(committed_to(leaf)) for leaf in leaves]
        self.host: HostTree = take(state)

    def __getstate__(self) -> dict[str, Any]:
        # Devices cannot be pickled.
        return self.__dict__ | {"_places": [_Place(None)] * len(self._places)}

    @property
    def state(self) -> TrainState:
        """A new copy of the state, on the devices that the original was on.

        After pickling it is on the default device.
        """
        pairs = zip(self.host.leaves.items(), self._places, strict=True)
        return self._structure.unflatten(
            [place(path, leaf, where) for (path, leaf), where in pairs]
        )

    def __repr__(self) -> str:
        values = [f", {name}={value:.4g}" for name, value in self.metrics.items()]
        return f"BestEvaluation(step={self.step}{''.join(values)})"


class _Place(NamedTuple):
    sharding: Any  # that an array is committed to; None: the default device
