"""Stochastic rounding to 16 bits, without bias.

`round_stochastically` draws from a key and rounds to bfloat16 or float16; parameters
are rounded with it. `round_by_dither` rounds to bfloat16 with given bits, such as the
`spread_dither` of a step, which costs two integer operations per entry; moments are
rounded with it.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fngrad.types import Key

NEAREST = 1 << 31  # the dither of rounding to nearest
LARGEST = 0x7F7F  # the bits of the largest bfloat16


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True)
class Rounded:
    """An array in bfloat16 that stands for one of a wider dtype."""

    values: jax.Array  # bfloat16
    dtype: Any  # of the array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.values.shape

    def widened(self) -> jax.Array:
        """Return the array, exactly."""
        return self.values.astype(self.dtype)


def round_by_dither(x: jax.Array, dither: Any = NEAREST) -> Rounded:
    r"""Round a real array to bfloat16.

    The last 16 bits of a float32 are dropped after the addition of 16 others, so that
    with uniform draws a value between two neighbors becomes the farther one from zero
    with a probability equal to its fraction of the interval: the mean is the value.

    Args:
        x: any shape; float64 is rounded to float32 first.
        dither: uint32, a number or of the shape of x, in units of $2^{-32}$ of an
            interval; the first 16 bits count.

    Returns:
        The array in bfloat16. Values of bfloat16 are returned unchanged, as are NaN
        and infinities; finite values stay finite.
    """
    bits = lax.bitcast_convert_type(_as_float32(x), jnp.uint32)
    has_neighbors = (bits & jnp.uint32(0x7FFFFFFF)) < jnp.uint32(LARGEST << 16)
    lift = jnp.where(
        has_neighbors, jnp.asarray(dither, jnp.uint32) >> 16, jnp.uint32(0)
    )
    kept = (bits + lift) & jnp.uint32(0xFFFF0000)
    # An exact cast. XLA on CPU reads the result of a cast in later loops; a result of
    # integer operations it computes again in each.
    values = lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)
    return Rounded(values, x.dtype)


def _as_float32(x: jax.Array) -> jax.Array:
    """Return x in float32, finite where x is."""
    if x.dtype != jnp.float64:
        return x.astype(jnp.float32)
    largest = float(jnp.finfo(jnp.float32).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(
        jnp.float32
    )


def spread_dither(shape: tuple[int, ...], step: jax.Array, stream: int) -> jax.Array:
    r"""Return the dither of a step for an array: uint32, of its shape.

    Entry $i$ gets $2^{32}$ times the fraction of $r + i / \varphi$, with $\varphi$ the
    golden ratio and $r$ a hash of step and stream. So for one entry the draws of
    different steps are uniform and independent; the entries of one step cover the
    interval evenly. It costs one multiplication and one addition per entry; a hash of
    the position would add a tenth to the time of Adam's update on CPU.

    Args:
        shape: of the array.
        step: int32, shape ().
        stream: the number of the array.

    References:
        Knuth, The art of computer programming, volume 3, 1973, section 6.4 (Fibonacci
        hashing).
    """
    return positions(shape) * jnp.uint32(0x9E3779B9) + step_word(step, stream)


def positions(shape: tuple[int, ...]) -> jax.Array:
    """Return the number of each entry in C order, modulo 2**32: uint32."""
    position = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        position += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return position


def step_word(step: jax.Array, stream: int) -> jax.Array:
    """Return a hash of a step (int32) and the number of an array: uint32, shape ()."""
    return mix(step.astype(jnp.uint32) + mix(jnp.uint32(stream + 1)))


def mix(word: jax.Array) -> jax.Array:
    """Hash 32 bits: the finalizer of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * jnp.uint32(factor)
    return word ^ (word >> 16)


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
