"""Rounding to 16 bits that is right on average."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fngrad.types import Key


def round_stochastically(x: jax.Array, key: Key, dtype: Any) -> jax.Array:
    r"""Round to a neighbour in ``dtype``, to the nearer one more often.

    With $a \le |x| \le b$ the neighbours of $|x|$ in the narrower format, the modulus
    becomes

    $$b \text{ with probability } (|x| - a) / (b - a), \text{ else } a,$$

    so that the mean is $x$. A value that the format has stays, as do NaN and
    infinities; what the cast makes infinite is infinite.

    Args:
        x: float32 or float64.
        key: a typed key; each entry has a draw of its own.
        dtype: bfloat16 or float16; where it is not narrower than 32 bits, x is cast.

    Raises:
        TypeError: another dtype, or complex x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.rounding import round_stochastically
        >>> third = jnp.full(10_000, 1 / 3)
        >>> rounded = round_stochastically(third, jax.random.key(0), jnp.bfloat16)
        >>> print(jnp.mean(rounded, dtype=jnp.float32).round(4))
        0.3333

    References:
        Gupta et al., Deep learning with limited numerical precision, 2015, section 3,
        https://arxiv.org/abs/1502.02551. Zamirai et al., Revisiting bfloat16
        training, 2020, https://arxiv.org/abs/2010.06192.
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"need floats to round, got {x.dtype}")
    if dtype not in (jnp.bfloat16, jnp.float16):
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32:
            return x.astype(dtype)
        raise TypeError(f"need dtype bfloat16 or float16, or a wider one, got {dtype}")
    modulus = jnp.abs(x)
    nearest = modulus.astype(dtype)
    bits = lax.bitcast_convert_type(nearest, jnp.uint16)
    is_above = (nearest.astype(x.dtype) > modulus).astype(jnp.uint16)
    low = lax.bitcast_convert_type(bits - is_above, dtype)
    high = lax.bitcast_convert_type(bits - is_above + jnp.uint16(1), dtype)
    start, end = low.astype(x.dtype), high.astype(x.dtype)
    goes_up = (modulus - start) > jax.random.uniform(key, x.shape, x.dtype) * (
        end - start
    )
    # Of NaN and infinity there are no neighbours.
    rounded = jnp.where(jnp.isfinite(nearest), jnp.where(goes_up, high, low), nearest)
    return jnp.copysign(rounded, x.astype(dtype))
