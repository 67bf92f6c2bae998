"""Arithmetic of first and second moments: bias, look-ahead, roots, range.

A *moment* is an average of the gradient (`mu`) or of its squared modulus (`nu`, real
also for complex parameters, whose gradients are taken to be conjugated already, so
that they point uphill). Averages begin at zero; a *bias correction* divides them by
the weight they have seen. A scheduled decay is corrected for bias as if its present
value had always held.

A second moment cannot hold more than the largest float. A finite gradient whose square
is beyond it counts as the largest one whose square is not, in every moment alike, so
that quotients of moments stay right and moments decay again. Where a rule has no
quotient (RAdam's unrectified steps), the step is that of the bounded gradient.
"""

import functools
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.types import Hyper, Params, Scalar, Updates


def real_dtype(x: jax.Array) -> jnp.dtype:
    """Return the dtype of a leaf's second moments: real, at least float32."""
    return jnp.finfo(tree.wide_dtype(x.dtype)).dtype


def zero_moment(params: Params) -> Updates:
    """Return second moments of zero: real, at least float32."""
    return jax.tree.map(lambda p: tree.zeros(p, real_dtype(p)), params)


def full_moment(params: Params, value: Scalar) -> Updates:
    """Return second moments that begin at a value: real, at least float32."""
    return raised(zero_moment(params), value)


def raised(zeros: Updates, value: Scalar) -> Updates:
    """Return zeros plus a value."""
    if isinstance(value, numbers.Real) and value == 0:
        return zeros
    return _sum(zeros, numerics.scalar(value))


@jax.jit  # outside of a program each shape would be one
def _sum(zeros: Updates, value: jax.Array) -> Updates:
    return jax.tree.map(lambda z: z + value.astype(z.dtype), zeros)


def squarable(updates: Updates, count: int = 1) -> Updates:
    """Return updates bounded so that the sum of ``count`` of their squares fits.

    inf and NaN stay.
    """

    def bound(u: jax.Array) -> jax.Array:
        largest = (numerics.largest_square(u.dtype) / max(count, 1)) ** 0.5
        if not jnp.iscomplexobj(u):
            return numerics.clipped(lax.is_finite(u), u, largest)
        size = numerics.magnitudes(u)
        excess = jnp.maximum(size / (largest / 2), 1)
        return jnp.where(jnp.isfinite(u), numerics.divided(u, excess), u)

    return jax.tree.map(bound, updates)


def bounded_squares(updates: Updates) -> Updates:
    """Return |u|**2 of the updates that `squarable` returns.

    For rules that divide the bounded updates by a moment of them.
    """
    # Of -u, or the two uses would share the bounded updates: XLA on CPU does not fuse
    # what is read by two loops of which one feeds the other, but writes it to memory.
    return jax.tree.map(tree.abs_square, squarable(tree.scale(-1.0, updates)))


def saturated_square(x: jax.Array) -> jax.Array:
    """Return |x|**2, finite wherever x is."""
    return numerics.saturated(tree.abs_square(x), x)


def largest_sum(dtype: Any) -> float:
    """Return where sums of squares over a leaf saturate; two of them can be added."""
    return numerics.largest_square(dtype) / 4


# Jitted, or a step outside jit would compile the branches each time.
@jax.jit
def shrink(square: jax.Array, updates: Updates) -> tuple[jax.Array, jax.Array]:
    """Return a factor at which a sum of squares fits, usually 1, and the sum with it.

    Args:
        square: the sum of squares as computed, perhaps infinite.
        updates: what it sums over; where not all are finite, the factor is 1.
    """
    limit = largest_sum(square.dtype)

    def shrunk() -> jax.Array:
        # The norm itself may not fit.
        norm = tree.norm(jax.tree.map(lambda u: u * numerics.FITTING_RATE, updates))
        norm = norm.astype(square.dtype)
        return jnp.where(
            jnp.isfinite(norm), limit**0.5 * numerics.FITTING_RATE / norm, 1
        )

    factor = lax.cond(square <= limit, lambda: jnp.ones_like(square), shrunk)
    return factor, jnp.where(factor < 1, limit, square)


@jax.jit
def shrunk_leaf(g: jax.Array) -> jax.Array:
    """Return a leaf scaled so that its sum of squares fits."""
    square = jnp.sum(tree.abs_square(g))

    def shrunk() -> jax.Array:
        return numerics.scaled(shrink(square, g)[0], g)

    return lax.cond(square <= largest_sum(square.dtype), lambda: g, shrunk)


def average_square(decay: jax.Array, nu: Updates, updates: Updates) -> Updates:
    """Return decay nu + (1 - decay) |u|**2."""
    return tree.average(decay, nu, jax.tree.map(tree.abs_square, updates))


def weight_seen(decay: jax.Array, step: jax.Array) -> jax.Array:
    r"""Return $1 - d^t$ with t = step + 1: the weight an EMA from zero has seen.

    As ``-expm1(t log d)`` it is exact to 2e-7 in float32, where ``1 - d**t`` puts
    Adam 3e-5 away from its float64 trajectory.
    """
    t = step.astype(decay.dtype) + 1  # step + 1 may not fit in int32
    return -jnp.expm1(t * jnp.log(decay))


def remove_bias(
    moment: Updates, decay: jax.Array, step: jax.Array, *, bounded: bool = False
) -> Updates:
    """Divide by the weight that an average from zero has seen.

    For `squarable` updates the quotient fits; that of their squares may exceed the
    largest float by rounding, which `divide_by_root` allows for.

    Args:
        moment: an average of updates, or of their squares.
        decay: of the average.
        step: number of updates before this one.
        bounded: whether a quotient that would overflow is the largest float; needed of
            other updates, and where the quotient is kept.
    """
    weight = weight_seen(decay, step)
    divided = jax.tree.map(lambda m: m / weight.astype(m.dtype), moment)
    return jax.tree.map(numerics.bounded, divided, moment) if bounded else divided


def look_ahead(
    mu: Updates,
    updates: Updates,
    decay: jax.Array,
    step: jax.Array,
    *,
    nesterov: bool,
    debias: bool = True,
) -> Updates:
    r"""Return the debiased average, one step ahead with ``nesterov``.

    $$\hat\mu_t = \frac{\beta\,\mu_t}{1 - \beta^{t+1}} +
      \frac{(1 - \beta)\,g_t}{1 - \beta^t}$$

    Without ``debias`` both denominators are 1; without ``nesterov`` it is
    $\mu_t / (1 - \beta^t)$.
    """
    if not debias:
        return tree.average(decay, mu, updates) if nesterov else mu
    if not nesterov:
        return remove_bias(mu, decay, step)
    ahead = remove_bias(mu, decay, numerics.next_step(step))
    return tree.average(decay, ahead, remove_bias(updates, decay, step))


def divide_by_root(
    updates: Updates, squares: Updates, inside: Scalar, outside: Scalar
) -> Updates:
    """Return u / (sqrt(square + inside) + outside); 0 where that divides by 0."""
    return jax.tree.map(
        lambda u, square: _divided_by_root(u, square, inside, outside), updates, squares
    )


@functools.partial(jax.jit, inline=True)
def _divided_by_root(
    u: jax.Array, square: jax.Array, inside: Scalar, outside: Scalar
) -> jax.Array:
    total = square + jnp.asarray(inside, square.dtype)
    root = numerics.square_root(jnp.minimum(total, jnp.finfo(total.dtype).max))
    denominator = root + jnp.asarray(outside, square.dtype)
    return numerics.divide(u, denominator.astype(u.dtype))


def place_eps(eps: jax.Array, is_inside: bool) -> tuple[Scalar, Scalar]:
    """Return the epsilon inside the root or maximum, and the one outside."""
    return (eps, 0.0) if is_inside else (0.0, eps)


def check_decay(name: str, value: Hyper, *, corrected: bool) -> None:
    """Raise unless a decay lies in [0, 1], or in [0, 1) where bias is corrected.

    Raises:
        ValueError: if a number does not; arrays and schedules pass unread.
    """
    numerics.check_number(name, value, 0.0, 1.0)
    if corrected and isinstance(value, numbers.Real) and value == 1:
        raise ValueError(f"need {name} < 1 to correct for bias, got {name}={value}")


def check_moments(
    *, eps: Hyper, eps_root: Hyper = 0.0, corrected: bool = True, **decays: Hyper
) -> None:
    """Raise unless the decays and epsilons of a rule with moments are valid.

    Raises:
        ValueError: if a decay fails `check_decay`, or an epsilon is negative.
    """
    for name, value in decays.items():
        check_decay(name, value, corrected=corrected)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("eps_root", eps_root, low=0.0)


def adam_correction(b1: jax.Array, b2: jax.Array, step: jax.Array) -> jax.Array:
    """Return Adam's two bias corrections as one factor of the step size."""
    of_root = jnp.sqrt(weight_seen(b2, step))
    return of_root / weight_seen(b1, step)
