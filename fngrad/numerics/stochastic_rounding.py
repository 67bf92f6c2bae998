"""Stochastic rounding to 16 bits, without bias."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fngrad.types import Key


def round_stochastically(
    x: jax.Array, key: Key, dtype: Any, rest: jax.Array | None = None
) -> jax.Array:
    r"""Round to a neighbor in ``dtype``, with the value as the mean.

    With $a \le |x| \le b$ the neighbors of $|x|$ in the narrower format, the modulus
    becomes

    $$b \text{ with probability } (|x| - a) / (b - a), \text{ else } a,$$

    so that the mean is $x$. Values of the format are returned unchanged, as are NaN and
    infinities; a value that the cast rounds to infinity becomes infinite.

    Args:
        x: float32 or float64.
        key: a typed key; draws are independent per entry.
        dtype: bfloat16 or float16; with 32 bits or more, x is cast.
        rest: the rounding error of x, at most half a unit of its last place: the mean
            is $x + \mathrm{rest}$. ``None`` means 0.

    Raises:
        TypeError: if ``dtype`` is another one, or x is complex.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.numerics.stochastic_rounding import round_stochastically
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
    beyond = jnp.zeros_like(x) if rest is None else rest * jnp.sign(x)
    nearest = modulus.astype(dtype)
    bits = lax.bitcast_convert_type(nearest, jnp.uint16)
    excess = nearest.astype(x.dtype) - modulus
    is_above = ((excess > 0) | ((excess == 0) & (beyond < 0))).astype(jnp.uint16)
    low = lax.bitcast_convert_type(bits - is_above, dtype)
    high = lax.bitcast_convert_type(bits - is_above + jnp.uint16(1), dtype)
    start, end = low.astype(x.dtype), high.astype(x.dtype)
    goes_up = _goes_up(modulus - start, end - modulus, beyond, key)
    # NaN and infinity have no neighbors.
    rounded = jnp.where(jnp.isfinite(nearest), jnp.where(goes_up, high, low), nearest)
    return jnp.copysign(rounded, x.astype(dtype))


def _goes_up(below: jax.Array, above: jax.Array, beyond: jax.Array, key: Key) -> Any:
    """Return whether to round up, with probability (below + beyond) / (below + above).

    The smaller of the two probabilities is compared with the draw, which has the digits
    of two words, so that small probabilities are accurate.
    """
    draw = jax.random.uniform(key, below.shape, below.dtype)
    second = jax.random.uniform(jax.random.fold_in(key, 1), below.shape, below.dtype)
    digits = second * jnp.finfo(below.dtype).eps
    gap = below + above
    from_start = below + beyond > (draw + digits) * gap
    from_end = above - beyond < ((1 - draw) - digits) * gap
    return jnp.where(below <= above, from_start, from_end)
