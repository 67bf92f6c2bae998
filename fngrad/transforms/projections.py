r"""The nearest points of sets: non-negative entries, boxes, simplices, balls, spheres.

The *projection* onto a set $C$ returns its point nearest to x in the Euclidean norm,

$$P_C(x) = \operatorname*{argmin}_{y \in C} \lVert y - x \rVert_2.$$

To project twice is to project once, and no two points move apart, except on
`l2_sphere`, the one set here that is not convex. `fngrad.project` keeps parameters in a
set; here are the plain functions of arrays.

``axis`` is an axis or several: every slice along them is one vector, which has a set of
its own; ``None``, the default, takes the whole array as one. For a ``weight`` of shape
(inputs, outputs), ``axis=0`` is one vector per output and ``axis=1`` one per input.

The arithmetic is in at least float32, the result in the dtype of x. Derivatives are
those of the projection, one-sided where it has a kink, and finite. NaN passes.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.simplex import above_threshold
from fngrad.types import Scalar

__all__ = [
    "box",
    "l1_ball",
    "l2_ball",
    "l2_sphere",
    "linf_ball",
    "non_negative",
    "simplex",
]

Axis: TypeAlias = int | Sequence[int] | None


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from("fngrad.projections")


def non_negative(x: ArrayLike) -> jax.Array:
    r"""Project onto the entries that are not negative: $\max(x_i, 0)$.

    Args:
        x: real floats, any shape.

    Raises:
        TypeError: if x does not hold real floats.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> print(fg.projections.non_negative(jnp.array([0.5, -3.0])))
        [0.5 0. ]
    """
    return jax.nn.relu(_floats("non_negative", x))


def box(
    x: ArrayLike, lower: ArrayLike | None = None, upper: ArrayLike | None = None
) -> jax.Array:
    r"""Project onto a box: $\min(\max(x_i, l_i), u_i)$.

    Args:
        x: real floats, any shape.
        lower: $l$, in units of x: a number, or an array that broadcasts to x; ``None``
            means no bound.
        upper: $u$ >= $l$, likewise.

    Raises:
        TypeError: if x does not hold real floats.
        ValueError: if there is no bound, a bound does not broadcast to x, or both are
            numbers and ``lower > upper``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> print(fg.projections.box(jnp.array([0.5, -3.0, 2.0]), -1.0, 1.0))
        [ 0.5 -1.   1. ]
    """
    x = _floats("box", x)
    if lower is None and upper is None:
        raise ValueError("need lower or upper, got neither")
    numbers = [isinstance(b, int | float | np.number) for b in (lower, upper)]
    if all(numbers) and not lower <= upper:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"need lower <= upper, got {lower=} {upper=}")
    wide = _wide(x)
    bounds = [
        _bound("lower", -math.inf if lower is None else lower, wide),
        _bound("upper", math.inf if upper is None else upper, wide),
    ]
    return lax.clamp(bounds[0], wide, bounds[1]).astype(x.dtype)


def linf_ball(x: ArrayLike, radius: Scalar = 1.0) -> jax.Array:
    r"""Project onto $\max_i |x_i| \le r$, a complex entry by its modulus.

    Args:
        x: floats or complex, any shape.
        radius: $r$ >= 0, in units of x.

    Raises:
        TypeError: if x holds neither floats nor complex numbers.
        ValueError: if a number is negative.
    """
    x = _floats("linf_ball", x, complex_too=True)
    radius = _radius("radius", radius)
    if not jnp.iscomplexobj(x):
        wide = _wide(x)
        bound = jnp.broadcast_to(radius.astype(wide.dtype), wide.shape)
        return lax.clamp(-bound, wide, bound).astype(x.dtype)
    size = numerics.modulus(x)
    factor = numerics.divide(radius.astype(size.dtype), size)
    return jnp.where(size > radius.astype(size.dtype), x * factor.astype(x.dtype), x)


def simplex(x: ArrayLike, scale: Scalar = 1.0, axis: Axis = None) -> jax.Array:
    r"""Project onto the simplex: entries $\ge 0$ that sum to the scale.

    $$P(x) = \max(x - \tau, 0) \quad\text{with $\tau$ such that}\quad
      \sum_i \max(x_i - \tau, 0) = s$$

    Entries far below the largest become exactly 0. Its derivative along v is $v -
    \bar v$ on the entries above 0, with $\bar v$ their mean, and 0 elsewhere; that by
    s is one over the number of these entries, at $s = 0$ of the largest ones.

    Args:
        x: real floats, any shape. An entry of ``-inf`` becomes 0.
        scale: $s$ >= 0, in units of x; 1 gives probabilities.
        axis: see `fngrad.projections`.

    Raises:
        TypeError: if x does not hold real floats.
        ValueError: if a number is negative, or an axis is not there.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> x = jnp.array([[0.5, 1.0, -1.0], [0.25, 0.25, 0.5]])
        >>> print(fg.projections.simplex(x, axis=1))
        [[0.25 0.75 0.  ]
         [0.25 0.25 0.5 ]]

    References:
        Duchi et al. 2008, "Efficient projections onto the l1-ball for learning in high
        dimensions", figure 1, https://doi.org/10.1145/1390156.1390191. Differs from it
        in: the threshold is summed again over its entries, which loses fewer digits
        than the running sum.
    """
    x = _floats("simplex", x)
    scale = _radius("scale", scale)
    return _by_vector(lambda rows: _on_simplex(rows, scale.astype(rows.dtype)), x, axis)


def l1_ball(x: ArrayLike, radius: Scalar = 1.0, axis: Axis = None) -> jax.Array:
    r"""Project onto the cross-polytope $\sum_i |x_i| \le r$.

    Outside of it, the moduli are projected onto the `simplex` of scale $r$, and keep
    their signs: small entries become exactly 0. On its surface derivatives are those
    inside; at $r = 0$ that by x is 0, and that by r is that of a larger r.

    Args:
        x: floats or complex, any shape.
        radius: $r$ >= 0, in units of x.
        axis: see `fngrad.projections`.

    Raises:
        TypeError: if x holds neither floats nor complex numbers.
        ValueError: if a number is negative, or an axis is not there.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> print(fg.projections.l1_ball(jnp.array([0.2, -1.5, 1.0])))
        [ 0.   -0.75  0.25]

    References:
        As `simplex`, figure 2.
    """
    x = _floats("l1_ball", x, complex_too=True)
    radius = _radius("radius", radius)

    def project(rows: jax.Array) -> jax.Array:
        is_complex = jnp.iscomplexobj(rows)
        size = numerics.modulus(rows) if is_complex else jnp.abs(rows)
        bound = radius.astype(size.dtype)
        kept = _on_simplex(size, bound)
        is_zero = size == 0
        unit = numerics.divided(rows, jnp.where(is_zero, 1, size))
        is_outside = jnp.sum(size, axis=-1, keepdims=True) > bound
        is_outside |= bound == 0  # where all x have one nearest point
        return jnp.where(is_outside, unit * kept.astype(rows.dtype), rows)

    return _by_vector(project, x, axis)


def l2_ball(x: ArrayLike, radius: Scalar = 1.0, axis: Axis = None) -> jax.Array:
    r"""Project onto the Euclidean ball: $x \min(1, r / \lVert x \rVert_2)$.

    With an axis it is a bound on the norm of each unit, known as max-norm.

    Args:
        x: floats or complex, any shape.
        radius: $r$ >= 0, in units of x.
        axis: see `fngrad.projections`.

    Raises:
        TypeError: if x holds neither floats nor complex numbers.
        ValueError: if a number is negative, or an axis is not there.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> x = jnp.array([[3.0, 0.1], [4.0, 0.2]])
        >>> print(fg.projections.l2_ball(x, axis=0))
        [[0.6 0.1]
         [0.8 0.2]]
    """
    x = _floats("l2_ball", x, complex_too=True)
    radius = _radius("radius", radius)

    def project(rows: jax.Array) -> jax.Array:
        short, size, unit = _short(rows)
        bound = radius.astype(size.dtype)
        moved = short * numerics.divide(bound, size).astype(rows.dtype)
        return jnp.where(size > bound / unit, moved, rows)

    return _by_vector(project, x, axis)


def l2_sphere(x: ArrayLike, radius: Scalar = 1.0, axis: Axis = None) -> jax.Array:
    r"""Project onto the Euclidean sphere: $x\, r / \lVert x \rVert_2$.

    With an axis it gives each unit one norm. All points of the sphere are nearest to
    the zero vector; it goes to the one whose entries are equal, with derivative 0.

    Args:
        x: floats or complex, any shape.
        radius: $r$ >= 0, in units of x.
        axis: see `fngrad.projections`.

    Raises:
        TypeError: if x holds neither floats nor complex numbers.
        ValueError: if a number is negative, or an axis is not there.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> print(fg.projections.l2_sphere(jnp.array([[3.0, 4.0], [0.0, 2.0]]), axis=1))
        [[0.6 0.8]
         [0.  1. ]]
    """
    x = _floats("l2_sphere", x, complex_too=True)
    radius = _radius("radius", radius)

    def project(rows: jax.Array) -> jax.Array:
        short, size, _ = _short(rows)
        bound = radius.astype(size.dtype)
        equal = (bound / math.sqrt(rows.shape[-1])).astype(rows.dtype)
        moved = short * numerics.divide(bound, size).astype(rows.dtype)
        return jnp.where(size == 0, equal, moved)

    return _by_vector(project, x, axis)


def _floats(name: str, x: ArrayLike, *, complex_too: bool = False) -> jax.Array:
    x = jnp.asarray(x)
    kind = jnp.inexact if complex_too else jnp.floating
    if not jnp.issubdtype(x.dtype, kind):
        wanted = "floats or complex numbers" if complex_too else "real floats"
        raise TypeError(f"need {wanted} for {name}, got {x.dtype}")
    return x


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(tree.wide_dtype(x.dtype))


def _radius(name: str, value: Scalar) -> jax.Array:
    numerics.check_number(name, value, low=0.0)
    return numerics.hyper(value)


def _bound(name: str, value: ArrayLike, x: jax.Array) -> jax.Array:
    numerics.check_number(name, value)  # pyright: ignore[reportArgumentType]
    bound = numerics.hyper(value) if jnp.ndim(value) == 0 else jnp.asarray(value)  # pyright: ignore[reportArgumentType]
    try:
        return jnp.broadcast_to(bound.astype(x.dtype), x.shape)
    except ValueError:
        raise ValueError(
            f"need {name} to broadcast to shape {x.shape}, got shape {bound.shape}"
        ) from None


def _by_vector(
    project: Callable[[jax.Array], jax.Array], x: jax.Array, axis: Axis
) -> jax.Array:
    """Apply a projection of vectors, ``(..., n) -> (..., n)``, along axes of x."""
    axes = _axes(axis, x.ndim)
    if x.size == 0:
        return x
    ends = tuple(range(x.ndim - len(axes), x.ndim))
    moved = jnp.moveaxis(_wide(x), axes, ends)
    outer = moved.shape[: x.ndim - len(axes)]
    projected = project(moved.reshape(*outer, -1)).reshape(moved.shape)
    return jnp.moveaxis(projected, ends, axes).astype(x.dtype)


def _axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    named = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    is_there = all(-ndim <= a < ndim for a in named)
    axes = tuple(a % ndim for a in named) if is_there else ()
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"need different axes of an array of {ndim} axes, got {axis=}")
    return axes


def _on_simplex(x: jax.Array, total: jax.Array) -> jax.Array:
    """Project along the last axis; the set of positive entries has no derivative."""
    is_point = total == 0
    x = jnp.where(is_point, lax.stop_gradient(x), x)
    x = x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    # NaN counts as kept, and so passes. The largest entries are the first above 0.
    is_kept = ~(lax.stop_gradient(above_threshold(x, total)) <= 0)
    is_kept |= is_point & (x == 0)
    kept = jnp.where(is_kept, x, 0)
    count = jnp.maximum(jnp.sum(is_kept, axis=-1, keepdims=True), 1).astype(x.dtype)
    threshold = (jnp.sum(kept, axis=-1, keepdims=True) - total) / count
    y = kept - threshold
    return jnp.where(is_kept & ~(y < 0), y, 0)


def _short(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return x over a power of two, its norm, and that power, along the last axis.

    The norm then neither overflows nor underflows.
    """
    largest = jnp.max(numerics.magnitudes(x), axis=-1, keepdims=True)
    unit = numerics.power_of_two_below(largest)
    short = numerics.divided(x, unit)
    return short, numerics.norm(short, axis=-1, keepdims=True), unit
