"""A transformer over tokens, with norms before the branches."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

import fngrad.layers as layers
import fngrad.layers.initializers as initializers
from fngrad.layers.core import Layer, check_sizes
from fngrad.layers.rematerialization import CheckpointPolicy
from fngrad.models.arguments import Activation, optional_dropout
from fngrad.models.transformer_blocks import repeated_blocks, transformer_block
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.sharding.meshes import AnyMesh
from fngrad.sharding.rules import Rule, check_rule, misfit, replicated
from fngrad.types import Path, Scalar

# The layers whose matrices `transformer_rule` splits, and how.
_BY_COLUMNS = ("query", "key", "value", "gate", "expand", "head")
_BY_ROWS = ("output", "shrink")


@explains_keywords()
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
    causal: bool = True,
    scan: bool = False,
    remat: bool | CheckpointPolicy = False,
) -> Layer:
    r"""Return a language model, ``(length,)`` -> ``(length, vocab)``.

    Pre-norm: with learned positions $p$,

    $$h = E_x + p, \quad h \leftarrow h + \text{attend}(\text{norm}(h)), \quad
    h \leftarrow h + W_2\, \sigma(W_1 \text{norm}(h)), \quad y = W \text{norm}(h),$$

    the middle two ``num_layers`` times. Attention is causal, as in a decoder: the
    logits at position t depend on tokens 0 to t; without ``causal`` they depend on all,
    as in an encoder. Weights are drawn with standard deviation 0.02, those that end a
    residual branch with $0.02 / \sqrt{2 n}$ for $n$ layers.

    Parameters: ``tokens``, ``positions``, ``blocks/layers/0/attention/...``,
    ``blocks/layers/0/mlp/...``, ``norm``, ``head``; with ``scan`` the blocks' are
    stacked at ``blocks/attention/...`` and ``blocks/mlp/...``. `layers.stack_layers`
    and `layers.unstack_layers`, at ``"**/blocks"``, convert one layout to the other. A
    checkpoint is restored in the layout that it was saved in, and then converted:
    ``layers.stack_layers(restore(folder, layers.unstack_layers(state, at)), at)``.

    Args:
        vocab_size: number of tokens.
        max_length: of a sequence.
        features: size of h.
        num_layers: number of blocks.
        num_heads: divides features.
        hidden_size: of the perceptron in each block, by default 4 * features.
        activation: $\sigma$.
        dropout_rate: in [0, 1], of embeddings, attention weights and residual branches,
            with a key.
        causal: whether position t attends to positions 0 to t only.
        scan: whether the blocks run in one loop of the program, which then compiles in
            the same time for any number of them; best with ``remat``. An optimizer that
            treats whole leaves needs ``fngrad.layerwise(fngrad.muon(0.02),
            "blocks/**")``.
        remat: whether the backward pass computes each block again from its input, to
            keep less in memory; or one of `jax.checkpoint_policies`.

    Raises:
        ValueError: if a size is below 1, num_heads does not divide features, or the
            rate is outside [0, 1]; at ``apply``, if x is longer than max_length or
            does not hold ints.

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
        pre-norm and the initial weights. Differs from it in: the head has weights of
        its own.
    """
    check_sizes(num_layers=num_layers)
    dropout = optional_dropout(dropout_rate)
    draw = initializers.normal(0.02)
    block = transformer_block(
        features,
        num_heads,
        hidden_size=hidden_size,
        activation=activation,
        dropout_rate=dropout_rate,
        causal=causal,
        weight_init=draw,
        output_init=initializers.normal(0.02 / math.sqrt(2 * num_layers)),
    )
    blocks = repeated_blocks(block, num_layers, scan=scan, remat=remat)
    return layers.serial(
        tokens=layers.embedding(vocab_size, features, weight_init=draw),
        positions=layers.positional_embedding(max_length, features, weight_init=draw),
        dropout=dropout,
        blocks=blocks,
        norm=layers.layer_norm(features),
        head=layers.linear(features, vocab_size, bias=False, weight_init=draw),
    )


def transformer_rule(axis: str = "model", otherwise: Rule = replicated) -> Rule:
    r"""Split the matrices of transformers over devices: tensor parallelism.

    $$\sigma(x W_1)\, W_2 = \sum_d \sigma(x W_1^{(d)})\, W_2^{(d)}$$

    with the columns of $W_1$ and the rows of $W_2$ on device d, so that a branch needs
    one sum over the devices: query, key, value, ``gate`` and ``expand`` are split by
    columns, as is the head, ``output`` and ``shrink`` by rows. `transformer`, `decoder`
    and `vision_transformer` have these names.

    Args:
        axis: of the mesh; its size should divide the number of heads. A mesh without it
            splits nothing by this rule.
        otherwise: the rule for the other leaves, and for matrices that the axis does
            not divide. ``fngrad.sharding.fsdp(within=transformer_rule())`` splits all
            of them over ``data`` too.

    Example:
        >>> import numpy as np
        >>> import fngrad as fg
        >>> mesh = fg.sharding.abstract_mesh(data=4, model=2)
        >>> rule = fg.models.transformer_rule()
        >>> tuple(rule("blocks/mlp/shrink/weight", np.zeros((6, 8, 4)), mesh))
        (None, 'model', None)

    References:
        Shoeybi et al., Megatron-LM, 2019, section 3, https://arxiv.org/abs/1909.08053.
    """

    check_rule(otherwise)
    return _TransformerRule(axis, otherwise)


class _TransformerRule(NamedTuple):
    axis: str
    otherwise: Rule

    def __call__(self, path: Path, leaf: Any, mesh: AnyMesh) -> PartitionSpec:
        *_, layer, name = ("", "", *path.split("/"))
        rank, spec = np.ndim(leaf), None
        if layer in _BY_COLUMNS and rank:
            spec = PartitionSpec(*[None] * (rank - 1), self.axis)
        elif layer in _BY_ROWS and name == "weight" and rank > 1:
            spec = PartitionSpec(*[None] * (rank - 2), self.axis, None)
        if spec is None or misfit(spec, np.shape(leaf), mesh):
            return self.otherwise(path, leaf, mesh)
        return spec
