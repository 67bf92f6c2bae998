"""Metrics of language models: the log loss in the units of texts."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fngrad.metrics.accumulators import Mean
from fngrad.metrics.classification import log_loss
from fngrad.metrics.derived import Derived


def perplexity(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None
) -> Derived:
    r"""Measure $\exp$ of the mean log loss, over all tokens of all examples.

    Args:
        logits: floats, shape ``(..., tokens, classes)``.
        labels: integers in [0, classes), shape ``(..., tokens)``.
        where, weights: see `fngrad.metrics`; ``where`` leaves out padding.

    Raises:
        TypeError: as `fngrad.metrics.log_loss`.
        ValueError: as `fngrad.metrics.log_loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import metrics
        >>> logits, labels = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int)
        >>> print(metrics.perplexity(logits, labels).value())
        4.0
    """
    return Derived(log_loss(logits, labels, where=where, weights=weights), _exp)


def bits_per_character(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None
) -> Derived:
    r"""Measure the mean log loss in bits: that in nats over $\log 2$.

    Args:
        logits: floats, shape ``(..., characters, classes)``; of tokens that are not
            characters it is the bits per token.
        labels: integers in [0, classes), shape ``(..., characters)``.
        where, weights: see `fngrad.metrics`; ``where`` leaves out padding.

    Raises:
        TypeError: as `fngrad.metrics.log_loss`.
        ValueError: as `fngrad.metrics.log_loss`.
    """
    return Derived(log_loss(logits, labels, where=where, weights=weights), _bits)


def _exp(loss: Mean) -> jax.Array:
    return jnp.exp(loss.value())


def _bits(loss: Mean) -> jax.Array:
    return loss.value() / math.log(2)
