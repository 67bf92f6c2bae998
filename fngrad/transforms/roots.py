"""What rules that divide by the root of a second moment have in common."""

import numbers

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.types import Hyper, Params, Scalar, Updates


def full_moment(params: Params, value: Scalar) -> Updates:
    """Return second moments that begin at a value: real, at least float32."""
    start = numerics.hyper(value)

    def full(p: jax.Array) -> jax.Array:
        dtype = jnp.finfo(tree.wide_dtype(p.dtype)).dtype
        return jnp.zeros_like(p, dtype=dtype) + start.astype(dtype)

    return jax.tree.map(full, params)


def remove_bias(moment: Updates, decay: jax.Array, step: jax.Array) -> Updates:
    """Divide by the weight that an average from zero has seen."""
    weight = numerics.bias_correction(decay, step)
    return jax.tree.map(lambda m: m / weight.astype(m.dtype), moment)


def debiased(
    mu: Updates, updates: Updates, decay: jax.Array, step: jax.Array, nesterov: bool
) -> Updates:
    """Return an average without its bias, or as it would be one step on.

    With Nesterov's look-ahead the present update stands in for the next.
    """
    if not nesterov:
        return remove_bias(mu, decay, step)
    ahead = remove_bias(mu, decay, numerics.next_step(step))
    return tree.average(decay, ahead, remove_bias(updates, decay, step))


def divide_by_root(
    updates: Updates, squares: Updates, inside: Scalar, outside: Scalar
) -> Updates:
    """Return u / (sqrt(square + inside) + outside); 0 where that divides by 0."""

    def divide(u: jax.Array, square: jax.Array) -> jax.Array:
        root = numerics.square_root(square + jnp.asarray(inside, square.dtype))
        denominator = root + jnp.asarray(outside, square.dtype)
        return numerics.divide(u, denominator.astype(u.dtype))

    return jax.tree.map(divide, updates, squares)


def place_eps(eps: jax.Array, eps_in_sqrt: bool) -> tuple[Scalar, Scalar]:
    """Return what is added inside the root, and outside."""
    return (eps, 0.0) if eps_in_sqrt else (0.0, eps)


def check_decay(name: str, value: Hyper, *, corrected: bool) -> None:
    """Raise unless a decay lies in [0, 1], or in [0, 1) where bias is corrected.

    Raises:
        ValueError: it does not; arrays and schedules pass unread.
    """
    numerics.check_number(name, value, 0.0, 1.0)
    if corrected and isinstance(value, numbers.Real) and value == 1:
        raise ValueError(f"need {name} < 1 to correct for bias, got {name}={value}")
