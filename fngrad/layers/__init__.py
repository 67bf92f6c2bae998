"""Layers: pairs of pure functions on one example, and how they compose."""

from typing import TYPE_CHECKING

import fngrad.layers.initializers as initializers
from fngrad.layers.adaptive_pooling import adaptive_avg_pool, adaptive_max_pool
from fngrad.layers.alibi import alibi_biases, alibi_slopes
from fngrad.layers.attention import multi_head_attention
from fngrad.layers.attention_weights import attention_weights
from fngrad.layers.bidirectional import bidirectional
from fngrad.layers.caching import cached, init_cache
from fngrad.layers.combinators import parallel, residual, serial
from fngrad.layers.conv import (
    avg_pool,
    conv,
    global_avg_pool,
    global_max_pool,
    max_pool,
)
from fngrad.layers.conv_transpose import conv_transpose
from fngrad.layers.core import (
    Layer,
    LayerError,
    LayerLike,
    LayerTypeError,
    StatefulLayer,
    batched,
    no_params,
)
from fngrad.layers.embedding import embedding, positional_embedding
from fngrad.layers.initializers import Initializer
from fngrad.layers.key_value_cache import KeyValueCache
from fngrad.layers.linear import drop_path, dropout, flatten, linear
from fngrad.layers.low_rank_adapters import LoRA, LowRank
from fngrad.layers.norm import batch_norm, group_norm, layer_norm, rms_norm
from fngrad.layers.prelu import prelu
from fngrad.layers.recurrent import LSTMState, gru, gru_cell, lstm, lstm_cell
from fngrad.layers.rematerialization import remat
from fngrad.layers.repeated_layers import repeat, stack_layers, unstack_layers
from fngrad.layers.rotary import Rotary, rotary
from fngrad.layers.spectral_norm import SpectralNormState, spectral_norm
from fngrad.layers.swiglu import swiglu
from fngrad.layers.tied import Tied, read_out, tied
from fngrad.layers.weight_norm import weight_norm

__all__ = [
    "Initializer",
    "KeyValueCache",
    "LSTMState",
    "Layer",
    "LayerError",
    "LayerLike",
    "LayerTypeError",
    "LoRA",
    "LowRank",
    "Rotary",
    "SpectralNormState",
    "StatefulLayer",
    "Tied",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "alibi_biases",
    "alibi_slopes",
    "attention_weights",
    "avg_pool",
    "batch_norm",
    "batched",
    "bidirectional",
    "cached",
    "conv",
    "conv_transpose",
    "drop_path",
    "dropout",
    "embedding",
    "flatten",
    "global_avg_pool",
    "global_max_pool",
    "group_norm",
    "gru",
    "gru_cell",
    "init_cache",
    "initializers",
    "layer_norm",
    "linear",
    "lstm",
    "lstm_cell",
    "max_pool",
    "multi_head_attention",
    "no_params",
    "parallel",
    "positional_embedding",
    "prelu",
    "read_out",
    "remat",
    "repeat",
    "residual",
    "rms_norm",
    "rotary",
    "serial",
    "spectral_norm",
    "stack_layers",
    "swiglu",
    "tied",
    "unstack_layers",
    "weight_norm",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
