"""Whole models: layers of one example, ready for training.

Each function returns a `fngrad.layers.Layer`; x is ONE example. Batches are made by
``jax.vmap(model.apply, (None, 0))(params, x)``, or by ``fngrad.layers.batched(model)``,
which also takes a key and gives each example its own: with a key dropout drops,
without one the model is deterministic. A dropout rate may be a tracer; None leaves
dropout out.
"""

from fngrad.models.cnn import cnn
from fngrad.models.logistic import logistic
from fngrad.models.mlp import mlp
from fngrad.models.rnn import rnn
from fngrad.models.transformer import transformer

__all__ = ["cnn", "logistic", "mlp", "rnn", "transformer"]
