"""The dtypes of leaves: arithmetic and state in at least float32.

An *iterate* is a point that a rule keeps beside the parameters (the first one, a second
sequence, an average): in at least float32, never aliasing the parameters (`wide_copy`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fngrad.numerics.precision import is_narrow
from fngrad.tree.paths import leaf_paths
from fngrad.types import Params, Tree

_SMALL = 2**20  # bytes


def is_float(x: Any) -> bool:
    """Return whether x is a float or complex array; abstract ones count."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def is_real(x: Any) -> bool:
    """Return whether x is an array of real floats; abstract ones count."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def is_key(x: Any) -> bool:
    """Return whether an array holds typed keys; abstract ones count."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def wide_dtype(dtype: Any) -> Any:
    """Return the dtype of moments and arithmetic: at least float32; integers stay."""
    if is_narrow(dtype):
        return jnp.dtype(jnp.float32)
    return jax.dtypes.canonicalize_dtype(dtype)


def widen(a: Tree) -> Tree:
    """Cast float leaves that are narrower than float32 to float32."""
    return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), a)


def wide_zeros_like(a: Tree) -> Tree:
    """Return zeros like the parameters in at least float32, the first moments."""
    return jax.tree.map(lambda x: zeros(x, wide_dtype(x.dtype)), a)


def zeros(x: jax.Array, dtype: Any, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Return zeros in the shape and on the devices of x, which may be abstract.

    Outside of a program JAX compiles one for every shape; a small array comes from the
    host instead.

    Args:
        x: an array.
        dtype: of the zeros.
        shape: of the zeros; ``None`` means that of x.
    """
    is_concrete = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    wanted = x.shape if shape is None else shape
    size = math.prod(wanted) * dtype.itemsize
    if not is_concrete or size > _SMALL or not _is_on_default(x):
        return jnp.zeros_like(x, dtype=dtype, shape=shape)
    return jax.device_put(np.zeros(wanted, dtype), may_alias=False)


def _is_on_default(x: jax.Array) -> bool:
    """Return whether an array is on the one device where new arrays are."""
    default = jax.config.jax_default_device or jax.local_devices()[0]  # pyright: ignore
    return x.sharding.device_set == {default}


def wide_copy(params: Params) -> Params:
    """Return a copy in at least float32; zeros for abstract leaves."""

    def copy(p: jax.Array) -> jax.Array:
        dtype = wide_dtype(p.dtype)
        if isinstance(p, jax.ShapeDtypeStruct):
            return jnp.zeros(p.shape, dtype)
        return copied(p, dtype)

    return jax.tree.map(copy, params)


def copied(x: Any, dtype: Any = None) -> jax.Array:
    """Return a copy of an array, without a weak type.

    Outside of a program it compiles nothing, where JAX can copy without one.

    Args:
        x: an array or a typed key.
        dtype: of the copy; ``None`` means that of x.
    """
    dtype = x.dtype if dtype is None else dtype
    if x.dtype == dtype and _is_strong_and_here(x):
        return jax.device_put(x, may_alias=False)
    return jnp.array(x, dtype=dtype, copy=True)


def _is_strong_and_here(x: Any) -> bool:
    """Return whether x is an array of this process, outside of a trace."""
    is_array = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    is_weak = getattr(x, "weak_type", False)  # keys have none
    if not is_array or is_weak or not x.is_fully_addressable:
        return False
    # jax.device_put does not copy a key that is on several devices.
    return not is_key(x) or len(x.sharding.device_set) == 1


def cast_real(a: Tree, dtype: Any) -> Tree:
    """Cast arrays of real floats; all other leaves stay as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if is_real(x) else x, a)


def cast_like(a: Tree, like: Tree) -> Tree:
    """Cast each leaf of a to the dtype of the corresponding leaf of ``like``."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), a, like)


def strong(a: Tree) -> Tree:
    """Return arrays without weak types, which would cause a second trace of a step."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), a)


def check_real(rule: str, params: Any) -> None:
    """Raise unless every leaf is real, for a rule that is undefined for complex ones.

    Raises:
        TypeError: if a leaf is complex; the message has its path.
    """
    for path, leaf in leaf_paths(params).items():
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"need real parameters for {rule}, got {leaf.dtype} at {path!r}"
            )


def check_floats(params: Params, *, complex_too: bool = False) -> None:
    """Check that every leaf is a float array, or a complex one if that is allowed.

    Raises:
        TypeError: if one is not; the message has its path.
    """
    kind = jnp.inexact if complex_too else jnp.floating
    for path, leaf in leaf_paths(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), kind):
            raise TypeError(
                f"need {'float or complex' if complex_too else 'real float'} "
                f"parameters, got {jnp.result_type(leaf)} at {path or '(root)'!r}"
            )
