"""A recurrent layer that reads a sequence from both ends."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.layers.combinators as combinators
from fngrad.layers.core import Layer
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.types import Key, Params


def _side_by_side(outputs: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.concatenate(outputs, axis=-1)


def bidirectional(
    recurrent: Callable[..., Layer],
    in_size: int,
    hidden_size: int,
    *,
    combine: Callable[[Any], Any] = _side_by_side,
    **options: Any,
) -> Layer:
    r"""Scan a sequence forward and backward, each with parameters of its own.

    $$y_t = (\overrightarrow h_t, \overleftarrow h_t)$$

    where $\overrightarrow h_t$ has seen positions 0 to t, and $\overleftarrow h_t$
    those from t on. The layer's ``apply(params, x, *, key=None, length=None)`` is that
    of `gru`: with a length both directions leave out the padding, so that the backward
    one begins at the last position before it.

    Parameters: those of a layer at ``forward`` and at ``backward``.

    Args:
        recurrent: `gru`, `lstm`, or a function with their arguments.
        in_size: last axis of x.
        hidden_size: of each direction; y has twice as many features.
        combine: takes the pair of outputs, by default side by side; ``sum`` adds them.
        options: further arguments of ``recurrent``.

    Raises:
        TypeError: if ``options`` has ``reverse``, which is given to each direction.
        ValueError: from ``recurrent``; at ``apply``, with the direction's name in
            front, as in `gru`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.bidirectional(layers.lstm, 3, 4)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones((6, 3)), length=5).shape
        (6, 8)

    References:
        Schuster and Paliwal 1997, "Bidirectional recurrent neural networks",
        https://doi.org/10.1109/78.650093
    """
    if "reverse" in options:
        raise TypeError("need no reverse, each direction gets its own, got one")
    ways = {
        "forward": recurrent(in_size, hidden_size, **options, reverse=False),
        "backward": recurrent(in_size, hidden_size, **options, reverse=True),
    }

    def combined(outputs: tuple[jax.Array, ...]) -> Any:
        # A single wide weight makes the output of its direction wide.
        dtype = functools.reduce(np.promote_types, (y.dtype for y in outputs))
        return combine(tuple(y.astype(dtype) for y in outputs))

    both = combinators.parallel(combine=combined, **ways)

    def apply(
        params: Params,
        x: jax.Array,
        *,
        key: Key | None = None,
        length: int | jax.Array | None = None,
    ) -> Any:
        if length is None:
            return both.apply(params, x, key=key)
        given = {name: _of_length(layer, length) for name, layer in ways.items()}
        return combinators.parallel(combine=combined, **given).apply(params, x, key=key)

    return Layer(both.init, made_of(apply, Parts("bidirectional", inner=both)))


def _of_length(layer: Layer, length: int | jax.Array) -> Layer:
    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        return layer.apply(params, x, key=key, length=length)

    return Layer(layer.init, apply)
