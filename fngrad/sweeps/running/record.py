"""What the lanes of one compiled training gave so far."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.sweeps.running.program import is_key


class Record:
    """Arrays for the outputs of all lanes, and which lanes are in them.

    Args:
        outputs: shapes and dtypes of one lane.
        count: how many lanes there will be.
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
        self.leaves = [np.zeros((count, *x.shape), x.dtype) for x in hosts]
        self.done = np.zeros(count, bool)

    def put(self, lanes: np.ndarray, leaves: list[np.ndarray]) -> None:
        """Take in the outputs of lanes; the rest of a padded block is left out."""
        for whole, part in zip(self.leaves, leaves, strict=True):
            whole[lanes] = part[: len(lanes)]
        self.done[lanes] = True

    def outputs(self, points: int, seeds: int) -> Any:
        """Return (state, history) with leaves (P, S, ...): NumPy arrays, and keys."""
        leaves = []
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
