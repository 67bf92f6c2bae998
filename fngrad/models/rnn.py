"""A recurrent network over sequences: stacked layers of `gru` or `lstm`, and a head."""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax

import fngrad.layers as layers
from fngrad.layers.core import Layer
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.models.arguments import check_sequence, optional_dropout
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.types import Key, Params, Scalar


@explains_keywords()
def rnn(
    in_size: int,
    hidden_sizes: Sequence[int],
    out_size: int,
    *,
    recurrent: Callable[[int, int], Layer] = layers.gru,
    every_step: bool = False,
    dropout_rate: Scalar | None = None,
) -> Layer:
    """Return a recurrent classifier of sequences, ``(time, in_size) -> (out_size,)``.

    With ``every_step`` it returns an output at each position, ``(time, out_size)``. A
    language model is ``serial(embedding(vocab, 64), rnn(64, [128], vocab,
    every_step=True))``. Parameters: ``layers/0/input/weight`` and so on,
    in the order of the layers.

    ``apply(params, x, *, key=None, length=None)``: positions from a length on (int, may
    be a tracer) are padding, as in `fngrad.layers.gru`; the last output is that at
    ``length - 1``. With ``every_step`` the outputs at padding are meaningless: leave
    them out of the loss. ``layers.batched(model)(params, x, length=lengths)`` takes one
    length per example. A combinator around the model does not pass a length on.

    Args:
        in_size: last axis of x.
        hidden_sizes: of the recurrent layers, at least one.
        out_size: number of outputs.
        recurrent: `fngrad.layers.gru` or `fngrad.layers.lstm`.
        every_step: whether to return all outputs or the last only.
        dropout_rate: in [0, 1], after each recurrent layer, with a key.

    Raises:
        ValueError: if there are no hidden sizes, a size is below 1, or the rate is
            outside [0, 1]; at ``apply``, if x has another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.rnn(8, [16], 10)
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(model.apply)(params, jnp.ones((8, 8))).shape
        (10,)
    """
    check_sequence("hidden_sizes", hidden_sizes)
    if not hidden_sizes:
        raise ValueError(f"need at least one hidden size, got {hidden_sizes=}")
    sizes = (in_size, *hidden_sizes)
    stack = [recurrent(*pair) for pair in itertools.pairwise(sizes)]
    dropout = optional_dropout(dropout_rate)
    head = layers.linear(sizes[-1], out_size)

    def model(length: int | jax.Array | None) -> Layer:
        entries = [e for layer in stack for e in (_padded(layer, length), dropout)]
        chosen = [] if every_step else [_last(length)]
        return layers.serial(*entries, *chosen, head)

    def apply(
        params: Params,
        x: jax.Array,
        *,
        key: Key | None = None,
        length: int | jax.Array | None = None,
    ) -> jax.Array:
        return model(length).apply(params, x, key=key)

    whole = model(None)
    return Layer(whole.init, made_of(apply, Parts("rnn", inner=whole)))


def _padded(layer: Layer, length: int | jax.Array | None) -> Layer:
    """Return a recurrent layer of a given length, if there is one."""
    if length is None:
        return layer
    return Layer(layer.init, functools.partial(layer.apply, length=length))


def _last(length: int | jax.Array | None) -> Callable[[jax.Array], jax.Array]:
    """Return a function of the last position; for length 0 that is padding, so 0."""
    return lambda h: h[-1 if length is None else length - 1]
