"""Norms and squares that neither overflow nor underflow."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fngrad.numerics.arithmetic import (
    FAR,
    FITTING_RATE,
    clipped,
    replaced,
    square_root,
)


def norm(
    x: jax.Array, axis: int | Sequence[int] | None = None, keepdims: bool = False
) -> jax.Array:
    """Return the Euclidean norm along axes; squares neither overflow nor underflow.

    Its gradient at zero is zero, not NaN.

    Args:
        x: at least float32, or complex.
        axis: the axes to sum over; ``None`` means all.
        keepdims: whether to keep these axes, with length one.
    """
    axes = axis if axis is None or isinstance(axis, int | np.integer) else tuple(axis)
    norms = _norms(x, axes)
    return norms if keepdims else jnp.squeeze(norms, axes)


# Jitted, since an eager step would compile the branches each time.
@functools.partial(jax.jit, static_argnums=1)
def _norms(x: jax.Array, axes: Any) -> jax.Array:
    def square(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.real(jnp.conj(x) * x), axis=axes, keepdims=True)

    return root_of_squares(square(x), lambda scale: square(divided(x, scale)))


@functools.partial(jax.jit, static_argnums=0)
def fitting_norm(
    norm_fn: Callable[[Any], jax.Array], x: Any
) -> tuple[jax.Array, jax.Array]:
    r"""Return the norm of rate * x, and the rate, with which it does not overflow.

    The rate is 1, or $2^{-64}$ where the norm of x overflows.

    Args:
        norm_fn: maps a tree to its norms.
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
    """Return rate * x * numerator / denominator, also where the ratio overflows.

    An ordinary ratio multiplies ``rate * x`` directly.

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
    r"""Return the root of a sum of squares, also where squares over- or underflow.

    In float32 this concerns entries above 1e19 or below 1e-19: they are divided by a
    power of two, $2^{70}$ or $2^{-80}$, before they are squared. The usual case keeps
    the bits of the plain root and costs no second pass over the entries, except under
    ``vmap``, where both cases are computed.

    Args:
        square: the sum of squares; float, any shape.
        square_of_scaled: returns the sum for entries divided by a scale, which has the
            shape of ``square``; called if any sum is outside the range in which it is
            accurate.
    """
    limits = jnp.finfo(square.dtype)
    # Below it, the loss by underflow could be visible in a sum of 2**32 squares.
    is_low = square < float(limits.tiny) / float(limits.eps) * 2.0**32
    is_high = ~jnp.isfinite(square)
    high, low = 2.0 ** (limits.maxexp * 35 // 64), 2.0 ** -(limits.maxexp * 5 // 8)

    def rescaled() -> jax.Array:
        scale = jnp.where(is_high, high, jnp.where(is_low, low, 1))
        scale = scale.astype(square.dtype)
        return scale * square_root(square_of_scaled(scale))

    return lax.cond(jnp.any(is_low | is_high), rescaled, lambda: square_root(square))


def largest_square(dtype: Any) -> float:
    """Return the bound of squares: the largest float, less a margin for rounding."""
    return float(jnp.finfo(dtype).max) * (1 - 2.0**-20)


def saturated(x: jax.Array, source: jax.Array) -> jax.Array:
    """Return min(x, `largest_square`) where the source is finite, else x; x >= 0."""
    limited = jnp.minimum(x, largest_square(x.dtype))
    return jnp.where(jnp.isfinite(source), limited, x)


def bounded(x: jax.Array, *sources: jax.Array) -> jax.Array:
    """Return x clipped to the largest float where all its sources are finite.

    A complex x is returned unchanged.
    """
    if jnp.iscomplexobj(x):
        return x
    largest = float(jnp.finfo(x.dtype).max)
    is_finite = functools.reduce(jnp.logical_and, map(lax.is_finite, sources))
    return clipped(jnp.broadcast_to(is_finite, x.shape), x, largest)


def magnitudes(x: jax.Array) -> jax.Array:
    """Return |x|, or max(|Re x|, |Im x|) for complex x, which cannot overflow."""
    if jnp.iscomplexobj(x):
        return jnp.maximum(jnp.abs(jnp.real(x)), jnp.abs(jnp.imag(x)))
    return jnp.abs(x)


def modulus(x: jax.Array) -> jax.Array:
    """Return |x| of complex numbers, without overflow; its gradient at 0 is 0."""
    scale = power_of_two_below(magnitudes(x) / 2)
    x = divided(x, scale)
    return scale * square_root(jnp.real(x) ** 2 + jnp.imag(x) ** 2)


def divided(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Return x / factor for a real factor; complex division would square the factor."""
    if jnp.iscomplexobj(x):
        return lax.complex(jnp.real(x) / factor, jnp.imag(x) / factor)
    return x / factor


def power_of_two_below(x: jax.Array) -> jax.Array:
    """Return the largest power of two <= x, without a gradient.

    Division by it is exact. It is at least the smallest normal number, also where x is
    0, and at most the inverse of that, since compilers multiply by the inverse; it is 1
    where x is not finite.

    Args:
        x: float32 or float64, >= 0, any shape.
    """
    x = lax.stop_gradient(x)
    limits = jnp.finfo(x.dtype)
    words = jnp.uint64 if limits.bits == 64 else jnp.uint32
    exponent = np.array(np.inf, x.dtype).view(words)  # the exponent's bits, all set
    bits = lax.bitcast_convert_type(x, words)
    bits = lax.bitwise_and(bits, lax.full_like(bits, exponent))
    power = lax.bitcast_convert_type(bits, x.dtype)
    power = lax.clamp(limits.tiny, power, 1 / limits.tiny)
    return replaced(lax.bitwise_not(lax.is_finite(x)), power, 1)


def agreement(u: jax.Array, w: jax.Array) -> jax.Array:
    """Return a number with the sign of Re(conj(u) w); the product might overflow."""
    if not jnp.iscomplexobj(u):
        return jnp.sign(u) * jnp.sign(w)
    a, b = (divided(x, power_of_two_below(magnitudes(x))) for x in (u, w))
    return jnp.real(jnp.conj(a) * b)
