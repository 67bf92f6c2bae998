r"""Arrays in 8 or 4 bits per entry: block-wise codes, rounded without bias.

An array is cut into blocks. A block has a float32 *scale*, determined by its largest
modulus; each entry is stored, as a fraction of the scale, in a *code*, a small float.
With $m$ bits of fraction, $f(c) = (1 + i / 2^m)\,2^e$ for $c = 2^m e + i$, and $K$
codes for the modulus, $c = 0 \ldots K - 1$, code $c$ stands for

$$\text{non-negative: } f(c + 1) / f(K), \qquad
  \text{signed: } \pm\,(f(c) - 1) / f(K).$$

Signed codes include zero, with uniform steps near it. Non-negative codes have no zero:
they are for second moments, whose root is a divisor, so that the relative error
matters. In 8 bits ($m = 3$) the smallest are $2 \cdot 10^{-6}$ of the scale for
averages and $3 \cdot 10^{-10}$ for averages of squares, about the square of that.

Rounding is stochastic: a value between two codes is rounded up with a probability equal
to its fraction of the interval. Averages need this. With $\beta_2 = 0.999$ an average
changes by a thousandth per step, where codes are a tenth apart, and rounding to nearest
can leave it unchanged.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fngrad.numerics.arithmetic import largest
from fngrad.numerics.stochastic_rounding import NEAREST, mix, positions, step_word

FRACTION_BITS = 23  # of float32


class Coding(NamedTuple):
    """The format of the codes."""

    bits: int  # 8, or 4: two codes per byte
    signed: bool

    @property
    def count(self) -> int:
        """K: the number of codes for the modulus."""
        return 2 ** (self.bits - self.signed)

    @property
    def fraction_bits(self) -> int:
        """m: the number of bits of fraction in a code."""
        return 3 if self.bits == 8 else int(self.signed)

    @property
    def offset(self) -> float:
        """The number subtracted from f, so that signed codes include zero."""
        return float(self.signed)

    @property
    def first(self) -> float:
        """f of the first code."""
        return 1.0 if self.signed else 1.0 + 2.0**-self.fraction_bits

    @property
    def height(self) -> float:
        """f(K), a power of two: the value of f that corresponds to the scale."""
        return 2.0 ** (self.count >> self.fraction_bits)

    @property
    def largest(self) -> float:
        """The largest fraction of the scale that has a code."""
        last = 1 - 0.5 ** (self.fraction_bits + 1) - 1 / self.height
        return last if self.signed else 1.0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scales"],
    meta_fields=["shape", "dtype", "coding"],
)
@dataclasses.dataclass(frozen=True)
class Coded:
    """An array in codes."""

    codes: jax.Array  # uint8, (blocks, bytes per block)
    scales: jax.Array  # float32, (blocks, 1)
    shape: tuple[int, ...]  # of the array
    dtype: Any  # of the array
    coding: Coding


def encode(
    x: jax.Array, coding: Coding, block_size: int, dither: Any = NEAREST
) -> Coded:
    """Encode a real array.

    Args:
        x: any shape, read in C order; entries >= 0 if the codes are not signed.
        coding: how many bits, and whether signed.
        block_size: entries per scale, even.
        dither: uint32, a number or (blocks, block_size): added to the dropped bits,
            in units of $2^{-32}$ of a step; uniform draws give stochastic rounding.

    Returns:
        The codes. A block with an entry that is not finite decodes to entries that
        are NaN or infinite.
    """
    rows = _in_rows(x.astype(jnp.float32), block_size)
    modulus = jnp.abs(rows)
    scales = largest(modulus, axis=1, keepdims=True) / coding.largest
    is_zero = scales == 0
    fraction = jnp.where(is_zero, 0, modulus / jnp.where(is_zero, 1, scales))
    numbers = _round(fraction, coding, dither)
    if coding.signed:
        numbers = numbers + jnp.where(rows < 0, jnp.uint8(coding.count), jnp.uint8(0))
    return Coded(_pack(numbers, coding.bits), scales, x.shape, x.dtype, coding)


def encode_like(coded: Coded, x: jax.Array, dither: Any = NEAREST) -> Coded:
    """Encode an array with the coding and block size of another."""
    return encode(x, coded.coding, _rows(coded)[1], dither)


def decode(coded: Coded) -> jax.Array:
    """Return the array that the codes stand for."""
    coding = coded.coding
    numbers = _unpack(coded.codes, coding.bits)
    values = _fraction(numbers & jnp.uint8(coding.count - 1), coding) * coded.scales
    if coding.signed:
        values = jnp.where(numbers < coding.count, values, -values)
    size = math.prod(coded.shape)
    return values.ravel()[:size].reshape(coded.shape).astype(coded.dtype)


def dither_like(coded: Coded, step: jax.Array, stream: int) -> jax.Array:
    """Return the dither of a step: uint32, a hash of step, stream and position.

    Args:
        coded: an array with the blocks.
        step: int32, shape ().
        stream: the number of the array.
    """
    return mix(positions(_rows(coded)) + step_word(step, stream))


def _round(fraction: jax.Array, coding: Coding, dither: Any) -> jax.Array:
    """Return the codes of moduli: the leading bits of f."""
    f = jnp.maximum(fraction * coding.height + coding.offset, coding.first)
    dropped = FRACTION_BITS - coding.fraction_bits
    lift = jnp.asarray(dither, jnp.uint32) >> (32 - dropped)
    number = (_bits(f) + lift - _bits(jnp.float32(coding.first))) >> dropped
    return jnp.minimum(number, jnp.uint32(coding.count - 1)).astype(jnp.uint8)


def _fraction(numbers: jax.Array, coding: Coding) -> jax.Array:
    """Return the fractions of the scale that the codes of moduli stand for."""
    dropped = FRACTION_BITS - coding.fraction_bits
    lowest = _bits(jnp.float32(coding.first))
    f = _float((numbers.astype(jnp.uint32) << dropped) + lowest)
    return (f - coding.offset) / coding.height


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint32)


def _float(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def _rows(coded: Coded) -> tuple[int, int]:
    """Return (blocks, block_size)."""
    blocks, bytes_of_block = coded.codes.shape
    return blocks, bytes_of_block * 8 // coded.coding.bits


def _in_rows(x: jax.Array, block_size: int) -> jax.Array:
    flat = x.ravel()
    return jnp.pad(flat, (0, -flat.size % block_size)).reshape(-1, block_size)


def _pack(numbers: jax.Array, bits: int) -> jax.Array:
    """Put the second half of each row into the upper bits of the first."""
    if bits == 8:
        return numbers
    low, high = jnp.split(numbers, 2, axis=1)
    return low | (high << 4)


def _unpack(packed: jax.Array, bits: int) -> jax.Array:
    if bits == 8:
        return packed
    return jnp.concatenate([packed & 15, packed >> 4], axis=1)
