r"""Logarithms of probabilities that lose no digits where a prediction is certain.

With $m = \max_k x_k$ and s the sum of $e^{x_k - m}$ over all classes but the largest,
$-\log p_k = (m - x_k) + \log(1 + s)$. The probability of a certain class is 1 in
float32; its loss and gradient come from s, the share of the others.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
from fngrad.losses.core import is_moving


class _Softmax(NamedTuple):
    """What losses of a softmax are made of, each shaped like the logits."""

    surprise: jax.Array  # -log p
    p: jax.Array
    others: jax.Array  # 1 - p, to every digit


def cross_entropy(axes: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy of logits to labels, where 0 * inf is 0."""
    return _cross_entropy(axes, x, y)


def cross_entropy_of_index(axis: int, x: jax.Array, index: jax.Array) -> jax.Array:
    """Return the surprise of one class, given by its number."""
    return _cross_entropy_of_index(axis, x, index)


def missing_probability(axes: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    """Return what the probabilities of the labels lack of 1, the sum of y (1 - p)."""
    return _missing_probability(axes, x, y)


def pick(x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Return the entries at the indices along an axis, which is removed.

    Args:
        x: any shape.
        index: in [0, n) for n entries along the axis.
        axis: of x.
    """
    index = jnp.expand_dims(index, axis)
    found = jnp.take_along_axis(x, index, axis=axis, mode="promise_in_bounds")
    return jnp.squeeze(found, axis)


def log_sum_exp(x: jax.Array, axis: int) -> jax.Array:
    """Return the logarithm of a sum of exponentials of finite numbers."""
    largest = lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    excess = numerics.exponentials(x - largest, (axis,))[1]
    return jnp.squeeze(largest + jnp.log1p(excess), axis)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """Return log(1 + exp(x)), the surprise of the other of two classes."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    return softplus(x), sigmoid(x) * x_dot


@jax.custom_jvp
def sigmoid(x: jax.Array) -> jax.Array:
    """Return 1 / (1 + exp(-x)), whose slope keeps its digits where it is 1."""
    return jax.nn.sigmoid(x)


@sigmoid.defjvp
def _sigmoid_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * x_dot


def _softmax(x: jax.Array, axes: tuple[int, ...]) -> _Softmax:
    largest = lax.stop_gradient(jnp.max(x, axis=axes, keepdims=True))
    below = x - largest
    e, excess = numerics.exponentials(below, axes)
    # The largest itself is e = 1, and 1 - e is exact; both keep their slopes.
    others = jnp.where(below == 0, excess + (1 - e), 1 + (excess - e))
    surprise = jnp.log1p(excess) - below
    return _Softmax(surprise, e / (1 + excess), others / (1 + excess))


def _value(axes: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(y * _finite_where_void(y, numerics.surprise(x, axes)), axis=axes)


_cross_entropy = jax.custom_jvp(_value, nondiff_argnums=(0,))


def _cross_entropy_jvp(
    axes: tuple[int, ...], primals: tuple, tangents: tuple
) -> tuple[jax.Array, Any]:
    (x, y), (x_dot, y_dot) = primals, tangents
    softmax = _softmax(x, axes)
    terms = jnp.zeros_like(x)
    if is_moving(x_dot):
        # p sum(y) - y, by parts that do not cancel: those of the other classes.
        other_labels = jnp.sum(y, axis=axes, keepdims=True) - y
        terms += (softmax.p * other_labels - y * softmax.others) * x_dot
    if is_moving(y_dot):
        terms += _finite_where_void(y, softmax.surprise) * y_dot
    return _cross_entropy(axes, x, y), jnp.sum(terms, axis=axes)


_cross_entropy.defjvp(_cross_entropy_jvp, symbolic_zeros=True)


def _missing(axes: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(y * _softmax(x, axes).others, axis=axes)


_missing_probability = jax.custom_jvp(_missing, nondiff_argnums=(0,))


def _missing_probability_jvp(
    axes: tuple[int, ...], primals: tuple, tangents: tuple
) -> tuple[jax.Array, Any]:
    (x, y), (x_dot, y_dot) = primals, tangents
    softmax = _softmax(x, axes)
    terms = jnp.zeros_like(x)
    if is_moving(x_dot):
        found = y * softmax.p
        other = jnp.sum(found, axis=axes, keepdims=True) - found
        terms += softmax.p * (other - y * softmax.others) * x_dot
    if is_moving(y_dot):
        terms += softmax.others * y_dot
    return _missing_probability(axes, x, y), jnp.sum(terms, axis=axes)


_missing_probability.defjvp(_missing_probability_jvp, symbolic_zeros=True)


def _finite_where_void(y: jax.Array, surprise: jax.Array) -> jax.Array:
    return jnp.where((y == 0) & jnp.isinf(surprise), 0, surprise)


def _value_of_index(axis: int, x: jax.Array, index: jax.Array) -> jax.Array:
    return pick(numerics.surprise(x, (axis,)), index, axis)


_cross_entropy_of_index = jax.custom_jvp(_value_of_index, nondiff_argnums=(0,))


@_cross_entropy_of_index.defjvp
def _cross_entropy_of_index_jvp(
    axis: int, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, index), (x_dot, _) = primals, tangents
    softmax = _softmax(x, (axis,))
    is_own = jax.nn.one_hot(index, x.shape[axis], axis=axis, dtype=bool)
    slope = jnp.where(is_own, -softmax.others, softmax.p)
    loss = _cross_entropy_of_index(axis, x, index)
    return loss, jnp.sum(slope * x_dot, axis=axis)
