"""A rectifier whose slope below zero is learned."""

import jax
import jax.numpy as jnp

import fngrad.layers.initializers as initializers
import fngrad.tree as tree
from fngrad.layers.core import (
    Layer,
    along_last,
    check_params,
    check_sizes,
    float_array,
    float_array_of,
    with_narrow_residuals,
)
from fngrad.layers.initializers import Initializer, draw
from fngrad.layers.layer_tree import by_position
from fngrad.types import Key, Params

_QUARTER = initializers.constant(0.25)


def prelu(channels: int | None = None, *, slope_init: Initializer = _QUARTER) -> Layer:
    r"""Multiply what is below 0 by a learned slope, entry by entry.

    $$y = \max(x, 0) + a \min(x, 0)$$

    Parameters: ``slope`` $a$, of shape ``(channels,)`` or ``()``. y has the dtype of x.
    At 0 the gradient by x is $a$.

    Args:
        channels: last axis of x, each channel with a slope of its own; by default all
            share one.
        slope_init: draws $a$, by default ``constant(0.25)``.

    Raises:
        ValueError: if channels is below 1; at ``apply``, if x has another last axis or
            is not floating, or the slope another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.prelu()
        >>> params = layer.init(jax.random.key(0))
        >>> print(layer.apply(params, jnp.array([-4.0, 2.0])))
        [-1.  2.]

    References:
        He et al. 2015, "Delving deep into rectifiers", equation 1,
        https://arxiv.org/abs/1502.01852
    """
    if channels is not None:
        check_sizes(channels=channels)
    shape = () if channels is None else (channels,)

    def init(key: Key) -> Params:
        return {"slope": draw(slope_init, key, shape)}

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, {"slope": shape})
        x = float_array(x) if channels is None else float_array_of(x, channels)
        return with_narrow_residuals(rectify, params, x)

    def rectify(params: Params, x: jax.Array) -> jax.Array:
        # The slope's gradient is a sum over positions: it is taken wide.
        slope, wide = tree.widen(params["slope"]), tree.widen(x)
        dtype = jnp.promote_types(slope.dtype, wide.dtype)
        slope = along_last(slope.astype(dtype), x.shape)
        wide = wide.astype(dtype)
        return jnp.where(wide > 0, wide, slope * wide).astype(x.dtype)

    return Layer(init, by_position(apply))
