"""Pytrees as vectors: added, scaled, averaged and measured.

``None`` is a tree without leaves, so a tree with holes is a vector with fewer
coordinates. A scalar coefficient is cast to each leaf's dtype; norms and inner
products are computed in at least float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
from fngrad.tree.dtypes import is_float, widen, zeros
from fngrad.types import Params, Scalar, Tree


def add(a: Tree, b: Tree) -> Tree:
    """Return a + b."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """Return a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(factor: Scalar, a: Tree) -> Tree:
    """Return factor * a, in the dtypes of a."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, a)


def lerp(a: Tree, b: Tree, weight: Scalar) -> Tree:
    """Return (1 - weight) a + weight b, in the dtypes of a.

    ``1 - weight`` is taken in the dtype of ``weight``, before any cast: in bfloat16
    a weight of 0.001 would leave 1 - weight = 1.
    """
    weight = jnp.asarray(weight)
    return average(1 - weight, a, b)


def average(decay: Scalar, a: Tree, b: Tree) -> Tree:
    """Return decay a + (1 - decay) b, in the dtypes of a: one step of an EMA."""
    decay = jnp.asarray(decay)
    return jax.tree.map(functools.partial(_average, decay, 1 - decay), a, b)


@functools.partial(jax.jit, inline=True)  # traced once for all leaves of a shape
def _average(
    decay: jax.Array, rest: jax.Array, x: jax.Array, y: jax.Array
) -> jax.Array:
    return decay.astype(x.dtype) * x + rest.astype(x.dtype) * y


def difference(a: Params, b: Params) -> Params:
    """Return a - b, in at least float32."""
    return sub(widen(a), widen(b))


def vdot(a: Any, b: Any) -> jax.Array:
    """Return the real part of <a, b> = sum conj(a_i) b_i, in at least float32."""
    products = jax.tree.map(
        lambda x, y: jnp.sum(jnp.real(jnp.conj(x) * y)), widen(a), widen(b)
    )
    terms = jax.tree.leaves(products)
    dtype = functools.reduce(np.promote_types, (t.dtype for t in terms), np.float32)
    return sum((term.astype(dtype) for term in terms), jnp.zeros((), dtype))


@jax.jit  # otherwise an eager step would compile the branches each time
def norm(a: Any) -> jax.Array:
    """Return the Euclidean norm over all leaves, in at least float32.

    It is accurate wherever the norm itself is representable, as at 1e30 and 1e-30. Its
    gradient at zero is zero, not NaN.
    """
    dtype = jax.eval_shape(vdot, a, a).dtype
    wide = jax.tree.map(lambda x: _with_precision(x, dtype), a)

    def square_of_scaled(divisor: jax.Array) -> jax.Array:
        shrunk = jax.tree.map(lambda x: numerics.divided(x, divisor), wide)
        return vdot(shrunk, shrunk)

    return numerics.root_of_squares(vdot(wide, wide), square_of_scaled)


def _with_precision(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(np.promote_types(dtype, "c8") if jnp.iscomplexobj(x) else dtype)


def where(condition: jax.Array, a: Tree, b: Tree) -> Tree:
    """Return a where a scalar condition holds and b elsewhere, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def stays_finite(a: Any, b: Any) -> jax.Array:
    """Return whether b is finite wherever a is: a bool of shape ()."""
    answers = jax.tree.map(_stays_finite, a, b)
    return jax.tree.reduce(jnp.logical_and, answers, jnp.ones((), bool))


def _stays_finite(old: jax.Array, new: jax.Array) -> jax.Array:
    if not is_float(new):
        return jnp.ones((), bool)
    return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))


def zeros_like(a: Any, dtype: Any = None) -> Any:
    """Return zeros in the shapes of a, whose leaves may be abstract."""

    def zero(x: Any) -> jax.Array:
        return zeros(x, dtype or x.dtype) if is_float(x) else jnp.zeros_like(x, dtype)

    return jax.tree.map(zero, a)


def abs_square(x: jax.Array) -> jax.Array:
    """Return |x|**2, real for complex x too."""
    return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else lax.mul(x, x)
