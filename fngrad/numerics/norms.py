"""Norms and squares that neither overflow nor vanish."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fngrad.numerics.arithmetic import FAR, FITTING_RATE, square_root


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
    axes = axis if axis is None or isinstance(axis, int | np.integer) else tuple(axis)
    norms = _norms(x, axes)
    return norms if keepdims else jnp.squeeze(norms, axes)


# Jitted, or a step outside of jit would compile the branches each time.
@functools.partial(jax.jit, static_argnums=1)
def _norms(x: jax.Array, axes: Any) -> jax.Array:
    def square(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.real(jnp.conj(x) * x), axis=axes, keepdims=True)

    return root_of_squares(square(x), lambda scale: square(divided(x, scale)))


@functools.partial(jax.jit, static_argnums=0)
def fitting_norm(
    norm_fn: Callable[[Any], jax.Array], x: Any
) -> tuple[jax.Array, jax.Array]:
    r"""Return the norm of rate * x, and the rate at which it fits.

    The rate is 1, or $2^{-64}$ where the norm of x overflows.

    Args:
        norm_fn: from a tree to its norms.
        x: a tree of floats.
    """
    plain = norm_fn(x)
    overflows = plain == jnp.inf

    def of_less() -> jax.Array:
        less = jax.tree.map(lambda u: u * jnp.asarray(FITTING_RATE, u.dtype), x)
        return jnp.where(overflows, norm_fn(less), plain)

    fitting = lax.cond(jnp.any(overflows), of_less, lambda: plain)
    return fitting, jnp.where(overflows, FITTING_RATE, 1).astype(plain.dtype)


def times_ratio(
    x: jax.Array, numerator: jax.Array, denominator: jax.Array, rate: jax.Array
) -> jax.Array:
    """Return rate * x * numerator / denominator, also where the ratio does not fit.

    An ordinary ratio multiplies ``rate * x`` as it is.

    Args:
        x: floats or complex, of any shape.
        numerator: >= 0, broadcasts to x.
        denominator: > 0, of about the size of ``rate * x``.
        rate: a power of two, see `fitting_norm`.
    """
    dtype = jnp.finfo(x.dtype).dtype
    ratio = numerator / denominator
    is_far = (ratio < 1 / FAR) | (ratio > FAR)
    scale = jnp.where(is_far, power_of_two_below(denominator), 1)
    ratio = numerator / (denominator / scale)
    x = x * rate.astype(dtype).astype(x.dtype)
    return divided(x, scale.astype(dtype)) * ratio.astype(dtype).astype(x.dtype)


def root_of_squares(
    square: jax.Array, square_of_scaled: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    r"""Return the root of a sum of squares, exact also where the squares do not fit.

    In float32 squares of what is beyond 1e19 or below 1e-19 do not: their sum is taken
    of entries divided by a power of two, $2^{70}$ or $2^{-80}$. The usual case keeps
    the bits of the plain root and, but under ``vmap``, where both cases are computed,
    costs no second pass over the entries.

    Args:
        square: float, any shape.
        square_of_scaled: gives the sum for entries divided by a scale, which has the
            shape of ``square``; called where any of the squares has left the range in
            which its sum is exact.
    """
    limits = jnp.finfo(square.dtype)
    # Below it, squares lost to underflow could be seen in a sum of 2**32 of them.
    is_low = square < float(limits.tiny) / float(limits.eps) * 2.0**32
    is_high = ~jnp.isfinite(square)
    high, low = 2.0 ** (limits.maxexp * 35 // 64), 2.0 ** -(limits.maxexp * 5 // 8)

    def rescaled() -> jax.Array:
        scale = jnp.where(is_high, high, jnp.where(is_low, low, 1))
        scale = scale.astype(square.dtype)
        return scale * square_root(square_of_scaled(scale))

    return lax.cond(jnp.any(is_low | is_high), rescaled, lambda: square_root(square))


def largest_square(dtype: Any) -> float:
    """Return where squares saturate: the largest float, less room for rounding."""
    return float(jnp.finfo(dtype).max) * (1 - 2.0**-20)


def saturated(x: jax.Array, source: jax.Array) -> jax.Array:
    """Return x >= 0, at most `largest_square`; inf and NaN of its source show in it."""
    limited = jnp.minimum(x, largest_square(x.dtype))
    return jnp.where(jnp.isfinite(source), limited, x)


def bounded(x: jax.Array, *sources: jax.Array) -> jax.Array:
    """Return x within the largest float wherever all of its sources are finite.

    A complex x is returned as it is.
    """
    if jnp.iscomplexobj(x):
        return x
    largest = float(jnp.finfo(x.dtype).max)
    is_finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, sources))
    return jnp.where(is_finite, jnp.clip(x, -largest, largest), x)


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
