r"""Searches for a step length that satisfies the Armijo or strong Wolfe conditions.

A search is given $\phi(a) = L(w + a\,d)$ and the slope $\phi'(0) < 0$. It evaluates
$\phi$ a bounded number of times, rejects lengths at which $\phi$ is not finite or
larger than $\phi(0)$, and returns 0 if it finds no length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree


class Point(NamedTuple):
    """A point on the line."""

    a: jax.Array  # the length
    value: jax.Array
    slope: jax.Array


class Found(NamedTuple):
    """The result of a search."""

    a: jax.Array  # the length; 0 if none is good enough
    value: jax.Array  # at that length
    evaluations: jax.Array  # int32, shape ()


def backtrack(
    value_at: Callable[[jax.Array], jax.Array],
    start: Point,
    first: jax.Array,
    *,
    c1: jax.Array,
    factor: jax.Array,
    max_evaluations: int,
) -> Found:
    r"""Return the first of $a, a\beta, a\beta^2, \ldots$ with sufficient decrease.

    $$\phi(a) \le \phi(0) + c_1\,a\,\phi'(0)$$

    Args:
        value_at: $\phi$.
        start: the point 0; if the slope there is not negative, no length is tried.
        first: the first length, > 0.
        c1: in (0, 1).
        factor: $\beta$ in (0, 1).
        max_evaluations: the largest number of lengths that are tried.
    """

    def is_searching(carry: tuple[Found, jax.Array]) -> jax.Array:
        found, _ = carry
        return (found.a == 0) & (found.evaluations < max_evaluations)

    def body(carry: tuple[Found, jax.Array]) -> tuple[Found, jax.Array]:
        found, a = carry
        value = value_at(a)
        is_good = _is_decrease(start, a, value, c1)
        new = Found(
            jnp.where(is_good, a, found.a),
            jnp.where(is_good, value, found.value),
            found.evaluations + 1,
        )
        return new, a * factor

    tried = jnp.where(_descends(start), 0, max_evaluations).astype(jnp.int32)
    nothing = Found(jnp.zeros_like(start.a), start.value, tried)
    found, _ = jax.lax.while_loop(is_searching, body, (nothing, first))
    return found._replace(evaluations=found.evaluations - tried)


class _Bracket(NamedTuple):
    low: Point  # the best point that decreases enough
    high: Point  # the other end; at infinity until one is found
    a: jax.Array  # the next length to try
    evaluations: jax.Array
    is_done: jax.Array


def strong_wolfe(
    point_at: Callable[[jax.Array], Point],
    start: Point,
    first: jax.Array,
    *,
    c1: jax.Array,
    c2: jax.Array,
    factor: jax.Array,
    longest: jax.Array,
    max_evaluations: int,
) -> Found:
    r"""Return a length with sufficient decrease and a small slope.

    $$\phi(a) \le \phi(0) + c_1\,a\,\phi'(0), \qquad
      |\phi'(a)| \le c_2\,|\phi'(0)|$$

    The length grows until an interval must contain such a point; the interval is then
    narrowed by minima of cubic interpolants. If the largest number of evaluations or
    the longest length is reached first, the result is the lowest point with sufficient
    decrease.

    Args:
        point_at: $\phi$ with its slope.
        start: the point 0; if the slope there is not negative, no length is tried.
        first: the first length, > 0.
        c1: in (0, c2).
        c2: in (c1, 1).
        factor: > 1, by which the length grows.
        longest: the largest length.
        max_evaluations: the largest number of lengths that are tried.

    References:
        Nocedal and Wright, Numerical optimization, 2006, algorithms 3.5 and 3.6 and
        equation 3.59.
    """

    def body(bracket: _Bracket) -> _Bracket:
        point = point_at(bracket.a)
        low, high = _narrow(bracket, point, _is_long(start, bracket.low, point, c1))
        is_flat = jnp.abs(point.slope) <= -c2 * start.slope
        is_taken = low.a == point.a
        is_open = jnp.isinf(high.a)
        longer = jnp.minimum(bracket.a * factor, longest)
        inside = _inside(low, high)
        is_stuck = jnp.where(is_open, bracket.a >= longest, _is_empty(low, high))
        return _Bracket(
            low,
            high,
            jnp.where(is_open, longer, inside),
            bracket.evaluations + 1,
            (is_taken & is_flat) | is_stuck,
        )

    beyond = Point(jnp.full_like(start.a, jnp.inf), start.value, -start.slope)
    nothing = jnp.zeros((), jnp.int32)
    bracket = _Bracket(start, beyond, first, nothing, ~_descends(start))
    end = jax.lax.while_loop(
        lambda b: ~b.is_done & (b.evaluations < max_evaluations), body, bracket
    )
    return Found(end.low.a, end.low.value, end.evaluations)


def _descends(start: Point) -> jax.Array:
    return jnp.isfinite(start.value) & jnp.isfinite(start.slope) & (start.slope < 0)


def _is_decrease(start: Point, a: jax.Array, value: jax.Array, c1: Any) -> jax.Array:
    bound = start.value + c1 * a * start.slope
    return jnp.isfinite(value) & (value <= bound)


def _is_long(start: Point, low: Point, point: Point, c1: jax.Array) -> jax.Array:
    """Return whether a minimum lies before this point."""
    is_good = _is_decrease(start, point.a, point.value, c1)
    return ~is_good | ~jnp.isfinite(point.slope) | (point.value >= low.value)


def _narrow(bracket: _Bracket, point: Point, is_long: jax.Array) -> tuple[Point, Point]:
    """Return the new ends: low has the lower value, and descends into the interval."""
    is_past = point.slope * (bracket.high.a - bracket.low.a) >= 0
    high = tree.where(is_long, point, tree.where(is_past, bracket.low, bracket.high))
    return tree.where(is_long, bracket.low, point), high


def _inside(low: Point, high: Point) -> jax.Array:
    """Return the minimum of the cubic through both ends, at least a tenth inside."""
    width = high.a - low.a
    d1 = low.slope + high.slope - 3 * (low.value - high.value) / (low.a - high.a)
    slopes = jnp.stack([d1, low.slope, high.slope])
    scale = numerics.power_of_two_below(jnp.max(jnp.abs(slopes)))
    d1, here, there = slopes / scale
    square = d1**2 - here * there
    d2 = jnp.sign(width) * jnp.sqrt(jnp.maximum(square, 0))
    share = 1 - (there + d2 - d1) / (there - here + 2 * d2)
    is_cubic = jnp.isfinite(share) & (square >= 0)
    return low.a + width * jnp.where(is_cubic, jnp.clip(share, 0.1, 0.9), 0.5)


def _is_empty(low: Point, high: Point) -> jax.Array:
    """Return whether there is no floating-point number between the ends."""
    eps = jnp.finfo(low.a.dtype).eps
    return jnp.abs(high.a - low.a) <= eps * jnp.maximum(low.a, high.a)
