r"""Arrays in few bits: block-wise codes, rounded without bias.

An array is cut into blocks. A block keeps a float32 *scale*, which its largest modulus
fixes; each entry is kept, as a fraction of the scale, in a *code*: a small float of its
own. With $m$ bits of fraction, $f(c) = (1 + i / 2^m)\,2^e$ for $c = 2^m e + i$, and
$K$ codes for the modulus, $c = 0 \ldots K - 1$, code $c$ stands for

$$\text{non-negative: } f(c + 1) / f(K), \qquad
  \text{signed: } \pm\,(f(c) - 1) / f(K).$$

Signed codes have a zero, and even steps next to it. The non-negative ones have none:
they are for second moments, by whose root one divides, and whose relative error is
what counts. In 8 bits ($m = 3$) the smallest are $2 \cdot 10^{-6}$ of the scale for
averages and $3 \cdot 10^{-10}$ for squares, so that neither ends before the other.

Rounding is stochastic: what lies between two codes goes up with a probability that is
its fraction of the way. Averages need it. With $\beta_2 = 0.999$ an average moves by
a thousandth a step where codes are a tenth apart, and rounding to the nearest can
hold it where it is.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

FRACTION_BITS = 23  # of float32
NEAREST = 1 << 31  # the dither that rounds to the nearest


class Coding(NamedTuple):
    """A way to write a fraction of the scale in a few bits."""

    bits: int  # 8, or 4: two codes in a byte
    signed: bool

    @property
    def count(self) -> int:
        """K: how many moduli there are."""
        return 2 ** (self.bits - self.signed)

    @property
    def fraction_bits(self) -> int:
        """m: how many bits of fraction a code has."""
        return 3 if self.bits == 8 else int(self.signed)

    @property
    def offset(self) -> float:
        """What is taken off f, so that there is a zero."""
        return float(self.signed)

    @property
    def first(self) -> float:
        """f of the first code."""
        return 1.0 if self.signed else 1.0 + 2.0**-self.fraction_bits

    @property
    def height(self) -> float:
        """f(K), a power of two: what the scale stands for."""
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

    codes: jax.Array  # uint8, (blocks, bytes of a block)
    scales: jax.Array  # float32, (blocks, 1)
    shape: tuple[int, ...]  # of the array
    dtype: Any  # of the array
    coding: Coding


def encode(
    x: jax.Array, coding: Coding, block_size: int, dither: Any = NEAREST
) -> Coded:
    """Write a real array in codes.

    Args:
        x: any shape, read in C order; entries >= 0 if the codes are not signed.
        coding: how many bits, and whether signed.
        block_size: entries that share a scale, even.
        dither: uint32, a number or (blocks, block_size): where in [0, 2**32) the
            fraction of a step goes up; uniform draws are stochastic rounding.

    Returns:
        The codes. A block with an entry that is not finite decodes to entries that
        are not, NaN or infinite.
    """
    rows = _in_rows(x.astype(jnp.float32), block_size)
    modulus = jnp.abs(rows)
    scales = jnp.max(modulus, axis=1, keepdims=True) / coding.largest
    is_zero = scales == 0
    fraction = jnp.where(is_zero, 0, modulus / jnp.where(is_zero, 1, scales))
    numbers = _round(fraction, coding, dither)
    if coding.signed:
        numbers = numbers + jnp.where(rows < 0, jnp.uint8(coding.count), jnp.uint8(0))
    return Coded(_pack(numbers, coding.bits), scales, x.shape, x.dtype, coding)


def encode_like(coded: Coded, x: jax.Array, dither: Any = NEAREST) -> Coded:
    """Write an array in the codes and blocks that another is in."""
    return encode(x, coded.coding, _rows(coded)[1], dither)


def decode(coded: Coded) -> jax.Array:
    """Return the array that codes stand for."""
    coding = coded.coding
    numbers = _unpack(coded.codes, coding.bits)
    values = _fraction(numbers & jnp.uint8(coding.count - 1), coding) * coded.scales
    if coding.signed:
        values = jnp.where(numbers < coding.count, values, -values)
    size = math.prod(coded.shape)
    return values.ravel()[:size].reshape(coded.shape).astype(coded.dtype)


def dither_like(coded: Coded, step: jax.Array, stream: int) -> jax.Array:
    """Return where each entry goes up at a step: uint32, a hash of step and place.

    Args:
        coded: whose blocks they are.
        step: int32, shape ().
        stream: which array this is.
    """
    shape = _rows(coded)
    row = lax.broadcasted_iota(jnp.uint32, shape, 0)
    column = lax.broadcasted_iota(jnp.uint32, shape, 1)
    place = row * jnp.uint32(shape[1]) + column
    return _mix(place + _mix(step.astype(jnp.uint32) + _mix(jnp.uint32(stream + 1))))


def _mix(word: jax.Array) -> jax.Array:
    """Scramble 32 bits: the finalizer of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * jnp.uint32(factor)
    return word ^ (word >> 16)


def _round(fraction: jax.Array, coding: Coding, dither: Any) -> jax.Array:
    """Return the codes of moduli: the bits of f above the last that is kept."""
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
