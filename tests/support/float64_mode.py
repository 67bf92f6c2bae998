"""Float64, switched on or off for a block of code."""

from typing import Any

import jax
from jax import experimental


def x64(on: bool = True):
    """Switch float64 on or off within a block, in old and new versions of JAX."""
    module: Any = jax if hasattr(jax, "enable_x64") else experimental
    return module.enable_x64(on)
