"""A decoder-only language model: RMS norm, rotary positions, gates, or their kin."""

import math
from typing import Literal, get_args

import jax

import fngrad.layers as layers
import fngrad.layers.initializers as initializers
import fngrad.numerics as numerics
from fngrad.layers.attention import Rotation
from fngrad.layers.core import Layer, check_sizes
from fngrad.layers.initializers import Initializer
from fngrad.layers.rematerialization import CheckpointPolicy
from fngrad.models.arguments import Activation, optional_dropout
from fngrad.models.transformer_blocks import pre_norm_block, repeated_blocks
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.types import Scalar

Norm = Literal["rms", "layer"]
_ROTARY = layers.rotary()
_MULTIPLE = 64  # of the hidden size that is not given


@explains_keywords()
def decoder(
    vocab_size: int,
    *,
    features: int = 128,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int | None = None,
    head_size: int | None = None,
    hidden_size: int | None = None,
    gated: bool = True,
    activation: Activation | None = None,
    norm: Norm = "rms",
    norm_eps: float | None = None,
    bias: bool = False,
    tied: bool = False,
    logit_scale: Scalar | None = None,
    rotary: Rotation | None = _ROTARY,
    alibi: bool = False,
    max_length: int | None = None,
    window: int | None = None,
    dropout_rate: Scalar | None = None,
    scan: bool = False,
    remat: bool | CheckpointPolicy = False,
) -> Layer:
    r"""Return a language model, ``(length,)`` -> ``(length, vocab)``.

    Pre-norm, with causal attention that turns queries and keys by their positions:

    $$h = E_x, \quad h \leftarrow h + \text{attend}(\text{norm}(h)), \quad
    h \leftarrow h + (\sigma(\text{norm}(h) W_g) \odot \text{norm}(h) W_1)\, W_2,
    \quad y = W \text{norm}(h),$$

    the middle two ``num_layers`` times. The defaults are LLaMA's; Mistral has
    ``num_kv_heads`` and ``window`` too, MPT has ``alibi=True, rotary=None, gated=False,
    norm="layer", tied=True``, GPT-2 ``max_length=1024, rotary=None, gated=False,
    norm="layer", bias=True, tied=True``. Weights are drawn as in `transformer`.

    Parameters: ``tokens``, ``blocks/layers/0/attention/attend/query`` ...,
    ``blocks/layers/0/mlp/swiglu/gate`` ..., ``norm``, ``head``; with ``scan`` the
    blocks' are stacked, as in `transformer`. `generate` writes with it, `layers.cached`
    applies it to one token after the other, `transformer_rule` splits it over devices.

    Args:
        vocab_size: number of tokens.
        features: size of h.
        num_layers: number of blocks.
        num_heads: of the queries.
        num_kv_heads: of keys and values, a divisor of num_heads, by default num_heads.
        head_size: by default features / num_heads.
        hidden_size: of the feed-forward layer, by default 8/3 of the features, rounded
            up to a multiple of 64, with gates, and 4 times the features without.
        gated: whether it is `layers.swiglu`; else $W_2\, \sigma(W_1\, \cdot)$, at
            ``mlp/expand`` and ``mlp/shrink``.
        activation: $\sigma$, by default `jax.nn.silu` with gates and `jax.nn.gelu`
            without.
        norm: ``"rms"`` or ``"layer"``.
        norm_eps: $\epsilon$ of the norms, by default 1e-6 for rms and 1e-5 for
            layer norms.
        bias: whether the maps of the blocks, and layer norms, have a bias.
        tied: whether $W$ is the embedding $E$, and there is no ``head``.
        logit_scale: multiplies y; None leaves it. With `fngrad.mup` a tied model needs
            the base's features over its own.
        rotary: turns queries and keys, `layers.rotary`; None does not.
        alibi: whether attention prefers what is near, `layers.alibi_biases`.
        max_length: of a sequence, for learned vectors added to $E_x$, at
            ``positions``; by default there are none, and no limit.
        window: how many positions each attends to, its own included; by default all
            before it.
        dropout_rate: in [0, 1], of embeddings, attention weights and residual branches,
            with a key.
        scan: whether the blocks run in one loop of the program, as in `transformer`.
        remat: whether the backward pass computes each block again, as in `transformer`.

    Raises:
        ValueError: if a size is below 1, num_heads does not divide features,
            num_kv_heads does not divide num_heads, the norm is unknown, or the rate is
            outside [0, 1]; at ``apply``, if x does not hold ints, or is longer than
            max_length.
        TypeError: if rotary is not a function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.decoder(11, features=8, num_heads=2, num_kv_heads=1)
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(model.apply)(params, jnp.array([1, 2, 3])).shape
        (3, 11)

    References:
        Touvron et al. 2023, "LLaMA: open and efficient foundation language models",
        section 2.2, https://arxiv.org/abs/2302.13971. Differs from it in: Hugging
        Face's pairing of `layers.rotary`; weights that end a residual branch begin
        smaller; LLaMA's hidden sizes are multiples of 256. GPT-2 has one map for
        queries, keys and values, with as many weights.
    """
    check_sizes(num_layers=num_layers)
    numerics.check_choice("norm", norm, get_args(Norm))
    small = initializers.normal(0.02)
    last = initializers.normal(0.02 / math.sqrt(2 * num_layers))
    attend = layers.multi_head_attention(
        features,
        num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        causal=True,
        window=window,
        rotary=rotary,
        alibi=alibi,
        dropout_rate=dropout_rate,
        bias=bias,
        weight_init=small,
        output_init=last,
    )
    sizes = features, hidden_size
    feed_forward = _feed_forward(sizes, gated, activation, bias, (small, last))
    normalize = _norm(norm, features, norm_eps, bias)
    block = pre_norm_block(normalize, attend, feed_forward, dropout_rate)
    is_learned = max_length is not None
    read_out = layers.read_out(vocab_size, features)
    head = layers.linear(features, vocab_size, bias=False, weight_init=small)
    scale = {} if logit_scale is None else {"scale": _scale(logit_scale)}
    return layers.serial(
        tokens=layers.embedding(vocab_size, features, weight_init=small),
        positions=layers.positional_embedding(max_length, features)
        if is_learned
        else layers.serial(),
        dropout=optional_dropout(dropout_rate),
        blocks=repeated_blocks(block, num_layers, scan=scan, remat=remat),
        norm=normalize,
        head=layers.tied("tokens", read_out) if tied else head,
        **scale,
    )


def _scale(factor: Scalar) -> Activation:
    numerics.check_number("logit_scale", factor)

    def scale(logits: jax.Array) -> jax.Array:
        return numerics.scaled(numerics.hyper(factor), logits)

    return scale


def _norm(kind: Norm, features: int, eps: float | None, bias: bool) -> Layer:
    if kind == "rms":
        return layers.rms_norm(features, eps=1e-6 if eps is None else eps)
    return layers.layer_norm(features, eps=1e-5 if eps is None else eps, bias=bias)


def _feed_forward(
    sizes: tuple[int, int | None],
    gated: bool,
    activation: Activation | None,
    bias: bool,
    inits: tuple[Initializer, Initializer],
) -> dict[str, Layer | Activation]:
    """Return the layers of the second branch of a block, by name."""
    features, hidden_size = sizes
    small, last = inits
    activation = activation or (jax.nn.silu if gated else jax.nn.gelu)
    if gated:
        rounded = _MULTIPLE * math.ceil(8 * features / (3 * _MULTIPLE))
        gates = layers.swiglu(
            features,
            rounded if hidden_size is None else hidden_size,
            activation=activation,
            bias=bias,
            weight_init=small,
            output_init=last,
        )
        return {"swiglu": gates}
    width = 4 * features if hidden_size is None else hidden_size
    return {
        "expand": layers.linear(features, width, bias=bias, weight_init=small),
        "activation": activation,
        "shrink": layers.linear(width, features, bias=bias, weight_init=last),
    }
