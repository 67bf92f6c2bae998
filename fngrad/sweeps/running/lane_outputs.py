"""The outputs of the lanes that are done, on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.sweeps.running.program import is_key, to_host


class LaneOutputs:
    """Arrays with the outputs of all lanes, and masks of those done and saved.

    Args:
        outputs: shapes and dtypes of one lane.
        count: the number of lanes.
    """

    def __init__(self, outputs: Any, count: int):
        self._outputs = outputs
        leaves, self._structure = jax.tree.flatten(outputs)
        self._implementations = [
            jax.random.key_impl(jnp.zeros((), leaf.dtype)) if is_key(leaf) else None
            for leaf in leaves
        ]
        hosts = [
            jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
            for leaf in leaves
        ]
        self.leaves: list[np.ndarray] = [
            np.zeros((count, *x.shape), x.dtype) for x in hosts
        ]
        self.done: np.ndarray = np.zeros(count, bool)
        self.saved: np.ndarray = np.zeros(count, bool)  # in the sweep's folder

    def unsaved(self, end: int) -> np.ndarray:
        """Return the numbers of the lanes below ``end`` that are done, not saved."""
        return np.flatnonzero(self.done[:end] & ~self.saved[:end])

    def put(self, lanes: np.ndarray, leaves: list[np.ndarray]) -> None:
        """Store the outputs of lanes; the padding of a block is dropped."""
        for whole, part in zip(self.leaves, leaves, strict=True):
            whole[lanes] = part[: len(lanes)]
        self.done[lanes] = True

    def put_points(self, state: Any, history: dict[str, Any]) -> None:
        """Store the outputs of all lanes, as `by_point` returned them.

        Args:
            state: leaves (P, S, ...).
            history: also with other metrics, and padded at the end.

        Raises:
            ValueError: if the state or a metric is missing.
        """
        own = {name: history[name] for name in self._outputs[1] if name in history}
        if jax.tree.structure((state, own)) != self._structure:
            raise ValueError(
                "need the state and the history as the sweep returned them, got a "
                f"state {jax.tree.structure(state)} and the metrics {sorted(history)}"
            )
        for whole, leaf in zip(self.leaves, to_host((state, own)), strict=True):
            lanes = leaf.reshape(len(whole), *leaf.shape[2:])
            whole[...] = lanes[(..., *(slice(size) for size in whole.shape[1:]))]
        self.done[:] = True

    def emptied(self, count: int) -> "LaneOutputs":
        """Return outputs of the same kind of lanes, none of them done."""
        return LaneOutputs(self._outputs, count)

    def by_point(self, seeds: int) -> Any:
        """Return (state, history) with leaves (P, S, ...): NumPy arrays and keys."""
        points, leaves = self.done.size // seeds, []
        for leaf, implementation in zip(
            self.leaves, self._implementations, strict=True
        ):
            shaped = leaf.reshape(points, seeds, *leaf.shape[1:])
            if implementation:
                shaped = jax.random.wrap_key_data(
                    jnp.asarray(shaped), impl=implementation
                )
            leaves.append(shaped)
        return self._structure.unflatten(leaves)
