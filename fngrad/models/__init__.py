"""Whole models, one architecture per file, each a layer of one example.

Each function returns a `fngrad.layers.Layer` whose x is ONE example; `resnet` with
batch norm returns a `fngrad.layers.StatefulLayer`. For a batch use
``jax.vmap(model.apply, (None, 0))(params, x)``, or ``fngrad.layers.batched(model)``,
which also takes a key and gives each example its own. With a key dropout is applied;
without one the model is deterministic. A dropout rate may be a tracer; None means no
dropout. `generate` draws tokens from a language model.
"""

from typing import TYPE_CHECKING

from fngrad.models.cnn import cnn
from fngrad.models.decoder import decoder
from fngrad.models.generation import generate
from fngrad.models.logistic import logistic
from fngrad.models.mlp import mlp
from fngrad.models.resnet import resnet
from fngrad.models.rnn import rnn
from fngrad.models.transformer import transformer, transformer_rule
from fngrad.models.vision_transformer import vision_transformer

__all__ = [
    "cnn",
    "decoder",
    "generate",
    "logistic",
    "mlp",
    "resnet",
    "rnn",
    "transformer",
    "transformer_rule",
    "vision_transformer",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
