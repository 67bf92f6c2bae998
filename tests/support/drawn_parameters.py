"""Parameters drawn by NumPy, so that nothing is compiled for them."""

from typing import Any

import jax
import numpy as np


def filled(layer: Any, scale: float = 0.5, seed: int = 0) -> Any:
    """Return parameters of a layer, of a normal distribution around 0."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(layer.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype), like
    )
