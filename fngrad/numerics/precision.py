"""Floats below 32 bits; float64 inside a context, whatever the global flag is."""

from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp


def is_narrow(dtype: Any) -> bool:
    """Return whether a dtype is a float below 32 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def double_precision() -> Any:
    """Return a context in which float64 is enabled, independent of the global flag.

    Arrays that are created inside stay float64 outside; earlier arrays keep their dtype
    (see `as_double`).
    """
    module: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return module.enable_x64(True)


def as_double(a: Any) -> Any:
    """Return a tree's arrays in double precision; integers and keys stay.

    Call it inside `double_precision`.
    """

    def widest(x: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            return x
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            return x.astype(jnp.complex128)
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(widest, a)
