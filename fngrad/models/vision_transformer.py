"""A transformer over the patches of an image."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

import fngrad.layers as layers
import fngrad.layers.initializers as initializers
import fngrad.numerics as numerics
from fngrad.layers.core import Layer, add_shared, check_params, check_sizes
from fngrad.layers.initializers import draw
from fngrad.layers.rematerialization import CheckpointPolicy, rematerialized
from fngrad.models.arguments import (
    Activation,
    check_sequence,
    optional_dropout,
    rates_by_depth,
)
from fngrad.models.transformer_blocks import repeated_blocks, transformer_block
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.types import Key, Params, Scalar

Size = Literal["Ti", "S", "B"]
Pool = Literal["token", "mean"]


class _Sizes(NamedTuple):
    features: int
    num_layers: int
    num_heads: int


_SIZES: dict[Size, _Sizes] = {
    "Ti": _Sizes(192, 12, 3),
    "S": _Sizes(384, 12, 6),
    "B": _Sizes(768, 12, 12),
}


@explains_keywords()
def vision_transformer(
    in_shape: tuple[int, int, int],
    classes: int,
    *,
    size: Size = "S",
    patch_size: int = 16,
    features: int | None = None,
    num_layers: int | None = None,
    num_heads: int | None = None,
    hidden_size: int | None = None,
    activation: Activation = jax.nn.gelu,
    pool: Pool = "token",
    dropout_rate: Scalar | None = None,
    drop_path_rate: Scalar | None = None,
    scan: bool = False,
    remat: bool | CheckpointPolicy = False,
) -> Layer:
    r"""Return a classifier of images, ``(h, w, c) -> (classes,)`` logits.

    Each patch of ``patch_size`` squared pixels is mapped to a vector by one matrix $E$.
    With a class token $t$ in front and learned positions $p$,

    $$h = (t, x_1 E, \dots, x_n E) + p, \quad y = W \text{norm}(h)_0 + b$$

    with the blocks of `transformer`, without causality, in between.

    Parameters: ``patches`` (a convolution), ``token``, ``positions``,
    ``blocks/layers/0/attention/...``, ``norm``, ``head``; with ``scan`` the blocks' are
    stacked. `transformer_rule` splits the matrices over devices.

    Args:
        in_shape: height, width and channels of x; patch_size divides the first two.
        classes: number of logits.
        size: ``"Ti"``, ``"S"`` or ``"B"``: 192, 384 or 768 features, 3, 6 or 12 heads,
            12 layers; features, num_heads and num_layers replace single numbers.
        patch_size: pixels along a patch.
        features: of h.
        num_layers: number of blocks.
        num_heads: divides features.
        hidden_size: of the perceptron in each block, by default 4 * features.
        activation: in the perceptron.
        pool: what the head gets: ``"token"``, the class token, or ``"mean"`` of all
            patches, and then there is no token.
        dropout_rate: in [0, 1], of embeddings, attention weights and residual branches,
            with a key.
        drop_path_rate: in [0, 1], at which the last block's branches are left out for
            an example, with a key; of the blocks before, evenly down to 0.
        scan: whether the blocks run in one loop of the program.
        remat: whether the backward pass computes each block again, as in `transformer`.

    Raises:
        ValueError: if a size is below 1 or unknown, patch_size does not divide the
            image, num_heads does not divide features, a rate is outside [0, 1], or
            ``scan``, whose blocks are equal, gets a drop_path_rate; at ``apply``, if x
            has another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.vision_transformer(
        ...     (8, 8, 1), 10, patch_size=4, features=8, num_layers=2, num_heads=2
        ... )
        >>> params = model.init(jax.random.key(0))
        >>> jax.jit(model.apply)(params, jnp.ones((8, 8, 1))).shape
        (10,)

    References:
        Dosovitskiy et al. 2021, "An image is worth 16x16 words", table 1 and appendix
        B.1, https://arxiv.org/abs/2010.11929 (B); Touvron et al. 2021, "Training
        data-efficient image transformers", table 1, https://arxiv.org/abs/2012.12877
        (Ti, S). Differs from them in: norms have eps 1e-5 and gelu its tanh form;
        weights that end a residual branch begin smaller, as in `transformer`, and the
        head at 0.
    """
    length = _patches(in_shape, patch_size)
    check_sizes(classes=classes)
    numerics.check_choice("size", size, get_args(Size))
    numerics.check_choice("pool", pool, get_args(Pool))
    own = _own_sizes(_SIZES[size], features, num_layers, num_heads)
    small = initializers.truncated_normal(0.02)
    block = functools.partial(
        transformer_block,
        own.features,
        own.num_heads,
        hidden_size=hidden_size,
        activation=activation,
        dropout_rate=dropout_rate,
        causal=False,
        weight_init=small,
        output_init=initializers.truncated_normal(0.02 / (2 * own.num_layers) ** 0.5),
    )
    return layers.serial(
        image=_of_shape(tuple(in_shape)),
        patches=layers.conv(
            in_shape[2],
            own.features,
            patch_size,
            stride=patch_size,
            padding="VALID",
            weight_init=initializers.lecun_normal(),
        ),
        rows=lambda x: x.reshape(length, own.features),
        token=_class_token(own.features) if pool == "token" else layers.serial(),
        positions=layers.positional_embedding(
            length + (pool == "token"), own.features, weight_init=small
        ),
        dropout=optional_dropout(dropout_rate),
        blocks=_blocks(block, own.num_layers, drop_path_rate, scan, remat),
        norm=layers.layer_norm(own.features),
        pool=(lambda h: h[0]) if pool == "token" else layers.global_avg_pool,
        head=layers.linear(own.features, classes, weight_init=initializers.zeros()),
    )


def _own_sizes(published: _Sizes, *given: int | None) -> _Sizes:
    """Return the published sizes but for those that are given."""
    pairs = zip(given, published, strict=True)
    own = _Sizes(*(default if size is None else size for size, default in pairs))
    check_sizes(**own._asdict())
    return own


def _blocks(
    block: Callable[..., Layer],
    count: int,
    drop_path_rate: Scalar | None,
    scan: bool,
    remat: bool | CheckpointPolicy,
) -> Layer:
    if drop_path_rate is None:
        return repeated_blocks(block(), count, scan=scan, remat=remat)
    if scan:
        raise ValueError(
            "need no drop_path_rate with scan, whose blocks have one rate, got "
            f"{drop_path_rate=}"
        )
    rates = rates_by_depth(drop_path_rate, count)
    return layers.serial(
        *[rematerialized(block(drop_path_rate=rate), remat) for rate in rates]
    )


def _patches(in_shape: tuple[int, int, int], patch_size: int) -> int:
    """Return how many patches an image has."""
    check_sizes(patch_size=patch_size)
    check_sequence("in_shape", in_shape)
    if len(in_shape) != 3:
        raise ValueError(f"need in_shape (height, width, channels), got {in_shape=}")
    height, width, _ = in_shape
    check_sizes(height=height, width=width)
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"need patch_size that divides the image, got {patch_size=} {in_shape=}"
        )
    return (height // patch_size) * (width // patch_size)


def _of_shape(shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    def checked(x: jax.Array) -> jax.Array:
        if jnp.shape(x) != shape:
            raise ValueError(f"need x of shape {shape}, got shape {jnp.shape(x)}")
        return x

    return checked


def _class_token(features: int) -> Layer:
    """Put a learned vector in front of the others."""

    def init(key: Key) -> Params:
        return {"weight": draw(initializers.zeros(), key, (1, features))}

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, {"weight": (1, features)})
        # Its gradient is a sum over the examples: it is taken wide.
        token = add_shared(jnp.zeros((1, features), x.dtype), params["weight"])
        return jnp.concatenate([token, x])

    return Layer(init, apply)
