"""The outputs of the lanes that are done, on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.sweeps.running.program import is_key


class LaneOutputs:
    """Arrays with the outputs of all lanes, and a mask of those that are done.

    Args:
        outputs: shapes and dtypes of one lane.
        count: the number of lanes.
    """

    def __init__(self, outputs: Any, count: int):
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

    def put(self, lanes: np.ndarray, leaves: list[np.ndarray]) -> None:
        """Store the outputs of lanes; the padding of a block is dropped."""
        for whole, part in zip(self.leaves, leaves, strict=True):
            whole[lanes] = part[: len(lanes)]
        self.done[lanes] = True

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
