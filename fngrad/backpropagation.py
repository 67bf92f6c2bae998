r"""Backpropagation layer by layer: the chain rule from the loss backwards.

A network is a list of layers, $h_i = f_i(w_i, h_{i-1})$, and a loss $L(h_n)$. In the
forward pass each layer stores what its derivative needs. In the backward pass a
*signal*, the gradient of the loss with respect to an activation, passes through one
layer at a time:

$$s_n = \nabla L(h_n), \qquad
  \nabla_{w_i} L = s_i^\top\,\frac{\partial f_i}{\partial w_i}, \qquad
  s_{i-1} = s_i^\top\,\frac{\partial f_i}{\partial h_{i-1}}$$

Each product with a Jacobian costs about as much as the layer itself, and no Jacobian
is ever built. `jax.grad` does the same with primitives instead of layers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.tree as tree
from fngrad.types import Params


class Backpropagation(NamedTuple):
    """The results of one forward and one backward pass."""

    loss: jax.Array  # shape ()
    activations: tuple[Any, ...]  # h_0 (the input) to h_n
    signals: tuple[Any, ...]  # gradients of the loss with respect to h_0 ... h_n
    gradients: tuple[Params, ...]  # with respect to w_1 ... w_n


class GradientNorms(NamedTuple):
    """The norms of the gradient at each depth."""

    signals: jax.Array  # Euclidean norms, shape (layers + 1,), the input's first
    gradients: jax.Array  # shape (layers,)


def backprop(
    layers: Sequence[Callable[[Any, Any], Any]],
    params: Sequence[Params],
    x: Any,
    loss_fn: Callable[[Any], jax.Array],
) -> Backpropagation:
    """Run the forward pass of a network, and the backward pass from its loss.

    Args:
        layers: functions ``(params, x) -> y``; `fngrad.layers.batched` turns a layer
            for single examples into one.
        params: the parameters of each layer, ``()`` for a layer without any.
        x: the input of the first layer, such as a batch. Signals of integers are
            float0, as in JAX.
        loss_fn: the last activation -> a real scalar.

    Returns:
        Loss, activations, signals and gradients; the gradients equal those of
        `jax.grad`.

    Raises:
        ValueError: if there are not as many params as layers.
        TypeError: if params is not a list, or the loss is not a real scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.backpropagation import backprop
        >>> double, square = lambda w, x: w * x, lambda w, x: x**2
        >>> seen = backprop([double, square], [jnp.float32(2.0), ()], jnp.float32(3.0),
        ...                 loss_fn=lambda h: h / 2)
        >>> print(seen.activations[1], seen.loss, seen.signals[1], seen.gradients[0])
        6.0 18.0 6.0 18.0

    References:
        Rumelhart, Hinton and Williams, Learning representations by back-propagating
        errors, 1986, https://doi.org/10.1038/323533a0.
    """
    if not isinstance(params, list | tuple):
        raise TypeError(
            f"need a list of params, one per layer, got {type(params).__name__}"
        )
    if len(layers) != len(params):
        raise ValueError(
            f"need params for each layer, got {len(layers)=} and {len(params)=}"
        )
    activations, pullbacks = [x], []
    for layer, w in zip(layers, params, strict=True):
        h, pullback = jax.vjp(layer, w, activations[-1])
        activations.append(h)
        pullbacks.append(pullback)
    loss, pullback = jax.vjp(loss_fn, activations[-1])
    _check_loss(loss)
    (signal,) = pullback(jnp.ones_like(loss))
    signals, gradients = [signal], []
    for pullback in reversed(pullbacks):
        gradient, signal = pullback(signal)
        gradients.append(gradient)
        signals.append(signal)
    return Backpropagation(
        loss, tuple(activations), tuple(signals[::-1]), tuple(gradients[::-1])
    )


def gradient_norms(seen: Backpropagation) -> GradientNorms:
    """Return the norms layer by layer, to see where they vanish or explode.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.backpropagation import backprop, gradient_norms
        >>> halve = lambda w, x: w * x
        >>> seen = backprop([halve] * 3, [jnp.float32(0.5)] * 3, jnp.float32(1.0),
        ...                 loss_fn=lambda h: h)
        >>> print(gradient_norms(seen).signals)
        [0.125 0.25  0.5   1.   ]
    """
    return GradientNorms(_norms(seen.signals), _norms(seen.gradients))


def _norms(parts: tuple[Any, ...]) -> jax.Array:
    norms = [_norm(part) for part in parts]
    dtype = functools.reduce(np.promote_types, (n.dtype for n in norms), np.float32)
    return jnp.array([norm.astype(dtype) for norm in norms], dtype)


def _norm(a: Any) -> jax.Array:
    """Return the norm over float leaves; that of integers is 0."""
    return tree.norm(tree.floats(a))


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, jax.Array):
        raise TypeError(f"need a real scalar loss, got {type(loss).__name__}")
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            f"need a real scalar loss, got shape {loss.shape} and dtype {loss.dtype}"
        )
