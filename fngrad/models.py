r"""Whole models: layers of one example, ready for training.

Each function returns a `fngrad.layers.Layer`; x is ONE example. Batches are made by
``jax.vmap(model.apply, (None, 0))(params, x)``, or by ``fngrad.layers.batched(model)``,
which also takes a key and gives each example its own: with a key dropout drops,
without one the model is deterministic. A dropout rate may be a tracer; None leaves
dropout out.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

import fngrad.layers as layers
import fngrad.layers.initializers as initializers
from fngrad.layers.core import Layer, check_sizes
from fngrad.layers.initializers import Initializer
from fngrad.types import Key, Params, Scalar

Activation = Callable[[jax.Array], jax.Array]

_HE = initializers.he_normal()
_GLOROT = initializers.glorot_uniform()


def logistic(in_size: int, classes: int) -> Layer:
    """Return a linear classifier, ``(in_size,) -> (classes,)`` logits, from zero.

    Its cross-entropy is convex, so zero is as good a start as any. Parameters:
    ``weight`` and ``bias``.

    Args:
        in_size: size of x.
        classes: number of logits.

    Raises:
        ValueError: a size below 1; at ``apply``, x of another size.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.logistic(4, 3)
        >>> params = model.init(jax.random.key(0))
        >>> print(jax.jit(jax.vmap(model.apply, (None, 0)))(params, jnp.ones((2, 4))))
        [[0. 0. 0.]
         [0. 0. 0.]]
    """
    return layers.linear(in_size, classes, weight_init=initializers.zeros())


def mlp(
    sizes: Sequence[int],
    activation: Activation = jax.nn.relu,
    *,
    dropout_rate: Scalar | None = None,
    weight_init: Initializer = _HE,
    output_init: Initializer = _GLOROT,
) -> Layer:
    """Return a multi-layer perceptron, ``(sizes[0],) -> (sizes[-1],)``.

    Parameters: ``layers/0/weight``, ``layers/0/bias``, ``layers/1/weight``, ...

    Args:
        sizes: input, hidden layers, output; at least two.
        activation: after each hidden layer.
        dropout_rate: in [0, 1], after each hidden activation, with a key.
        weight_init: draws the weights of hidden layers, by default `he_normal`.
        output_init: draws the last weights, by default `glorot_uniform`.

    Raises:
        ValueError: fewer than two sizes, one below 1, a rate outside of [0, 1]; at
            ``apply``, x of another size.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.mlp((64, 32, 10))
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(jax.vmap(model.apply, (None, 0)))(params, jnp.ones((5, 64))).shape
        (5, 10)
    """
    _check_sequence("sizes", sizes)
    if len(sizes) < 2:
        raise ValueError(f"need at least two sizes, input and output, got {sizes=}")
    dropout = _dropout(dropout_rate)
    hidden = [
        entry
        for in_size, out_size in itertools.pairwise(sizes[:-1])
        for entry in (
            layers.linear(in_size, out_size, weight_init=weight_init),
            activation,
            dropout,
        )
    ]
    last = layers.linear(sizes[-2], sizes[-1], weight_init=output_init)
    return layers.serial(*hidden, last)


def cnn(
    in_shape: tuple[int, int, int],
    classes: int,
    *,
    channels: Sequence[int] = (16, 32),
    kernel_size: int = 3,
    hidden_size: int = 64,
    activation: Activation = jax.nn.relu,
    dropout_rate: Scalar | None = None,
) -> Layer:
    """Return a small convolutional classifier, ``(h, w, c) -> (classes,)`` logits.

    Each stage is a convolution that keeps the size, an activation, and max pooling
    that halves it; then a hidden layer, dropout and the logits. It fits 8x8 digits as
    well as 28x28. Parameters: ``layers/0/weight`` and so on, in this order.

    Args:
        in_shape: height, width and channels of x.
        classes: number of logits.
        channels: of each stage.
        kernel_size: of each convolution.
        hidden_size: of the hidden layer.
        activation: after each convolution and the hidden layer.
        dropout_rate: in [0, 1], before the logits, with a key.

    Raises:
        ValueError: a size below 1, a rate outside of [0, 1], more stages than the
            image can be halved; at ``apply``, x of another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.cnn((8, 8, 1), 10)
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(model.apply)(params, jnp.ones((8, 8, 1))).shape
        (10,)
    """
    _check_sequence("in_shape", in_shape)
    _check_sequence("channels", channels)
    if len(in_shape) != 3:
        raise ValueError(f"need in_shape (height, width, channels), got {in_shape=}")
    height, width, in_channels = in_shape
    check_sizes(height=height, width=width)
    rows, columns = height >> len(channels), width >> len(channels)
    if min(rows, columns) < 1:
        raise ValueError(
            f"need an image that can be halved {len(channels)} times, got {in_shape=}"
        )
    stages = [
        entry
        for c_in, c_out in itertools.pairwise((in_channels, *channels))
        for entry in (
            layers.conv(c_in, c_out, kernel_size),
            activation,
            layers.max_pool(2),
        )
    ]
    flat_size = rows * columns * (in_channels, *channels)[-1]
    return layers.serial(
        *stages,
        layers.flatten,
        layers.linear(flat_size, hidden_size, weight_init=initializers.he_normal()),
        activation,
        _dropout(dropout_rate),
        layers.linear(hidden_size, classes),
    )


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

    With ``every_step`` it gives an output at each position, ``(time, out_size)``; after
    an embedding that makes a language model: ``serial(embedding(vocab, 64), rnn(64,
    [128], vocab, every_step=True))``. Parameters: ``layers/0/input/weight`` and so on,
    in the order of the layers.

    ``apply(params, x, *, key=None, length=None)``: positions from a length on (int, may
    be a tracer) are padding, as in `fngrad.layers.gru`; the last output is that at
    ``length - 1``. With ``every_step`` what stands at padding means nothing: leave it
    out of the loss. ``layers.batched(model)(params, x, length=lengths)`` takes one
    length for each example. A combinator around the model passes none on.

    Args:
        in_size: last axis of x.
        hidden_sizes: of the recurrent layers, at least one.
        out_size: number of outputs.
        recurrent: `fngrad.layers.gru` or `fngrad.layers.lstm`.
        every_step: whether to give all outputs or the last only.
        dropout_rate: in [0, 1], after each recurrent layer, with a key.

    Raises:
        ValueError: no hidden sizes, a size below 1, a rate outside of [0, 1]; at
            ``apply``, x of another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.rnn(8, [16], 10)
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(model.apply)(params, jnp.ones((8, 8))).shape
        (10,)
    """
    _check_sequence("hidden_sizes", hidden_sizes)
    if not hidden_sizes:
        raise ValueError(f"need at least one hidden size, got {hidden_sizes=}")
    sizes = (in_size, *hidden_sizes)
    stack = [recurrent(*pair) for pair in itertools.pairwise(sizes)]
    dropout = _dropout(dropout_rate)
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

    return Layer(model(None).init, apply)


def transformer(
    vocab_size: int,
    max_length: int,
    *,
    features: int = 128,
    num_layers: int = 2,
    num_heads: int = 4,
    hidden_size: int | None = None,
    activation: Activation = jax.nn.gelu,
    dropout_rate: Scalar | None = None,
) -> Layer:
    r"""Return a decoder-only language model, ``(length,)`` -> ``(length, vocab)``.

    Pre-norm: with learned positions $p$,

    $$h = E_x + p, \quad h \leftarrow h + \text{attend}(\text{norm}(h)), \quad
    h \leftarrow h + W_2\, \sigma(W_1 \text{norm}(h)), \quad y = W \text{norm}(h),$$

    the middle two ``num_layers`` times, attention causal: the logits at position t know
    tokens 0 to t. Weights are drawn with standard deviation 0.02, those that end a
    residual branch with $0.02 / \sqrt{2\, \text{num\_layers}}$.

    Parameters: ``tokens``, ``positions``, ``blocks/layers/0/attention/...``,
    ``blocks/layers/0/mlp/...``, ``norm``, ``head``.

    Args:
        vocab_size: number of tokens.
        max_length: of a sequence.
        features: size of h.
        num_layers: number of blocks.
        num_heads: divides features.
        hidden_size: of the perceptron in a block, by default 4 * features.
        activation: $\sigma$.
        dropout_rate: in [0, 1], of embeddings, attention weights and residual branches,
            with a key.

    Raises:
        ValueError: a size below 1, heads that don't divide the features, a rate outside
            of [0, 1]; at ``apply``, x longer than max_length or no ints.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.transformer(11, 8, features=8, num_heads=2)
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(model.apply)(params, jnp.array([1, 2, 3])).shape
        (3, 11)

    References:
        Vaswani et al. 2017, "Attention is all you need", https://arxiv.org/abs/1706.03762;
        Radford et al. 2019, "Language models are unsupervised multitask learners", for
        pre-norm and the start. Differs from it in: the head has weights of its own.
    """
    check_sizes(num_layers=num_layers)
    dropout = _dropout(dropout_rate)
    draw = initializers.normal(0.02)
    draw_last = initializers.normal(0.02 / math.sqrt(2 * num_layers))
    attend = layers.multi_head_attention(
        features,
        num_heads,
        causal=True,
        dropout_rate=dropout_rate,
        weight_init=draw,
        output_init=draw_last,
    )
    width = 4 * features if hidden_size is None else hidden_size
    perceptron = {
        "expand": layers.linear(features, width, weight_init=draw),
        "activation": activation,
        "shrink": layers.linear(width, features, weight_init=draw_last),
    }
    block = layers.serial(
        attention=_branch(features, {"attend": attend}, dropout),
        mlp=_branch(features, perceptron, dropout),
    )
    return layers.serial(
        tokens=layers.embedding(vocab_size, features, weight_init=draw),
        positions=layers.positional_embedding(max_length, features, weight_init=draw),
        dropout=dropout,
        blocks=layers.serial(*[block] * num_layers),
        norm=layers.layer_norm(features),
        head=layers.linear(features, vocab_size, bias=False, weight_init=draw),
    )


def _branch(
    features: int, inner: dict[str, Layer | Activation], dropout: Layer
) -> Layer:
    norm = layers.layer_norm(features)
    return layers.residual(layers.serial(norm=norm, **inner, dropout=dropout))


def _dropout(rate: Scalar | None) -> Layer:
    return layers.serial() if rate is None else layers.dropout(rate)


def _padded(layer: Layer, length: int | jax.Array | None) -> Layer:
    """Return a recurrent layer that is told the length, if there is one."""
    if length is None:
        return layer
    return Layer(layer.init, functools.partial(layer.apply, length=length))


def _last(length: int | jax.Array | None) -> Callable[[jax.Array], jax.Array]:
    """Return what takes the last position; of no positions, that of the state 0."""
    return lambda h: h[-1 if length is None else length - 1]


def _check_sequence(name: str, sizes: Any) -> None:
    if not hasattr(sizes, "__len__"):
        raise ValueError(f"need a sequence of sizes as {name}, got {name}={sizes!r}")
