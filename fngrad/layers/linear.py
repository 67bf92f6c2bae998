"""Affine maps, dropout of entries and of whole branches, and flattening."""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.layers.core import (
    Layer,
    check_params,
    check_sizes,
    dense,
    drop,
    float_array,
    float_array_of,
    no_params,
)
from fngrad.layers.initializers import (
    GLOROT,
    ZEROS,
    Initializer,
    dense_params,
    dense_shapes,
)
from fngrad.layers.layer_tree import by_position
from fngrad.programs.keywords_elsewhere import OF_LAYERS, explains_keywords
from fngrad.types import Key, Params, Scalar


@explains_keywords(OF_LAYERS)
def linear(
    in_size: int,
    out_size: int,
    *,
    bias: bool = True,
    weight_init: Initializer = GLOROT,
    bias_init: Initializer = ZEROS,
) -> Layer:
    r"""Map a vector affinely: $y = x W + b$.

    Parameters: ``weight`` $W$ of shape ``(in_size, out_size)`` and ``bias`` $b$ of
    shape ``(out_size,)``. x has the shape ``(..., in_size)``; leading axes, such as
    the positions of a sequence, are kept.

    Args:
        in_size: size of the last axis of x.
        out_size: size of the last axis of y.
        bias: whether there is a $b$.
        weight_init: draws $W$, by default `glorot_uniform`.
        bias_init: draws $b$.

    Raises:
        ValueError: if a size is below 1; at ``apply``, if x has another last axis or is
            not floating, or the parameters have other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.linear(3, 2)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones(3)).shape
        (2,)
    """
    check_sizes(in_size=in_size, out_size=out_size)
    shape = in_size, out_size
    shapes = dense_shapes(shape, bias)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, shapes)
        return dense(params, float_array_of(x, in_size))

    return Layer(
        lambda key: dense_params(key, shape, weight_init, bias_init if bias else None),
        by_position(apply),
    )


@explains_keywords(OF_LAYERS)
def dropout(rate: Scalar) -> Layer:
    r"""Zero each entry with probability $p$ and divide the others by $1 - p$.

    The expectation is x. Without a key nothing is dropped.

    Args:
        rate: $p$ in [0, 1]; a number, a scalar array or a tracer.

    Raises:
        ValueError: if the rate is a number outside [0, 1]; at ``apply``, if x is not
            floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.dropout(0.5)
        >>> print(layer.apply((), jnp.ones(4)))
        [1. 1. 1. 1.]
        >>> print(jnp.unique(layer.apply((), jnp.ones(64), key=jax.random.key(0))))
        [0. 2.]

    References:
        Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from
        overfitting", https://jmlr.org/papers/v15/srivastava14a.html. Differs from it
        in: the survivors are scaled in training, not the weights in evaluation.
    """
    numerics.check_number("rate", rate, low=0.0, high=1.0)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        return drop("dropout", rate, float_array(x), key)

    return Layer(no_params, by_position(apply))


@explains_keywords(OF_LAYERS)
def drop_path(rate: Scalar) -> Layer:
    r"""Zero the whole of x with probability $p$, else divide it by $1 - p$.

    Also called stochastic depth: at the end of a residual branch it leaves out the
    branch, for each example by itself. The expectation is x. Without a key nothing is
    dropped.

    Args:
        rate: $p$ in [0, 1]; a number, a scalar array or a tracer.

    Raises:
        ValueError: if the rate is a number outside [0, 1]; at ``apply``, if x is not
            floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> block = layers.residual(layers.serial(jnp.tanh, layers.drop_path(0.5)))
        >>> x = jnp.ones((6, 2))
        >>> y = layers.batched(block)((), x, key=jax.random.key(0))
        >>> print(jnp.unique(y).round(2))  # 1, or 1 + 2 tanh(1)
        [1.   2.52]

    References:
        Huang et al. 2016, "Deep networks with stochastic depth",
        https://arxiv.org/abs/1603.09382. Differs from it in: the branches that are kept
        are scaled in training, not all in evaluation.
    """
    numerics.check_number("rate", rate, low=0.0, high=1.0)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        x = float_array(x)
        return drop("drop_path", rate, x, key, shape=(1,) * x.ndim)

    return Layer(no_params, by_position(apply))


def flatten(x: jax.Array) -> jax.Array:
    """Return one example as a vector."""
    return jnp.ravel(x)
