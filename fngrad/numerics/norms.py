"""Norms and squares that neither overflow nor vanish."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fngrad.numerics.arithmetic import square_root


def norm(
    x: jax.Array, axis: int | Sequence[int] | None = None, keepdims: bool = False
) -> jax.Array:
    """Return the Euclidean norm along axes; its squares neither overflow nor vanish.

    Its gradient at zero is zero, not NaN.

    Args:
        x: at least float32, or complex.
        axis: what is summed over; ``None`` takes all axes.
        keepdims: whether these axes stay, with length one.
    """

    def square(x: jax.Array) -> jax.Array:
        products = jnp.real(jnp.conj(x) * x)
        return jnp.sum(products, axis=axis, keepdims=keepdims)

    def rescaled() -> jax.Array:
        scale = power_of_two_below(jnp.max(magnitudes(x), initial=0) / 2)
        return scale * square_root(square(divided(x, scale)))

    return root_of_squares(square(x), rescaled)


def root_of_squares(square: jax.Array, rescaled: Callable[[], jax.Array]) -> jax.Array:
    """Return the root of a sum of squares, or ``rescaled()`` where that is inexact.

    The squares of what is beyond 1e19 or below 1e-19 do not fit in float32. The usual
    case costs no second pass over the entries and keeps the bits of the plain root.

    Args:
        square: float, any shape.
        rescaled: gives the root from entries divided by a common scale; called where
            any of the squares has left the range in which its sum is exact.
    """
    limits = jnp.finfo(square.dtype)
    # Below it, squares lost to underflow could be seen in a sum of 2**32 of them.
    least = float(limits.tiny) / float(limits.eps) * 2.0**32
    fits = jnp.all((square >= least) & jnp.isfinite(square))
    return lax.cond(fits, lambda: square_root(square), rescaled)


def largest_square(dtype: Any) -> float:
    """Return where squares saturate: the largest float, less room for rounding."""
    return float(jnp.finfo(dtype).max) * (1 - 2.0**-20)


def saturated(x: jax.Array, source: jax.Array) -> jax.Array:
    """Return x >= 0, at most `largest_square`; inf and NaN of its source show in it."""
    bounded = jnp.minimum(x, largest_square(x.dtype))
    return jnp.where(jnp.isfinite(source), bounded, x)


def magnitudes(x: jax.Array) -> jax.Array:
    """Return |x|, and max(|Re x|, |Im x|) where x is complex; it cannot overflow."""
    if jnp.iscomplexobj(x):
        return jnp.maximum(jnp.abs(jnp.real(x)), jnp.abs(jnp.imag(x)))
    return jnp.abs(x)


def modulus(x: jax.Array) -> jax.Array:
    """Return |x| of complex numbers; its squares fit, and its gradient at 0 is 0."""
    scale = power_of_two_below(magnitudes(x) / 2)
    x = divided(x, scale)
    return scale * square_root(jnp.real(x) ** 2 + jnp.imag(x) ** 2)


def divided(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Return x / factor for a real factor; complex division would square it."""
    if jnp.iscomplexobj(x):
        return lax.complex(jnp.real(x) / factor, jnp.imag(x) / factor)
    return x / factor


def power_of_two_below(x: jax.Array) -> jax.Array:
    """Return the largest power of two <= x, without a gradient.

    Dividing by it rounds nothing. It is at least the smallest normal number, also
    where x is 0, and at most the inverse of that, which compilers multiply by; 1 where
    x is not finite.

    Args:
        x: float32 or float64, >= 0, any shape.
    """
    x = lax.stop_gradient(x)
    limits = jnp.finfo(x.dtype)
    words = jnp.uint64 if limits.bits == 64 else jnp.uint32
    exponent = np.array(np.inf, x.dtype).view(words)  # the exponent's bits, all set
    bits = lax.bitcast_convert_type(x, words) & exponent
    power = lax.bitcast_convert_type(bits, x.dtype)
    least = float(limits.tiny)
    return jnp.where(jnp.isfinite(x), jnp.clip(power, least, 1 / least), 1)
