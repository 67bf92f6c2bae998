"""What the architectures have in common: activations, initialisers, dropout, checks."""

from collections.abc import Callable
from typing import Any

import jax

import fngrad.layers as layers
import fngrad.layers.initializers as initializers
from fngrad.layers.core import Layer
from fngrad.types import Scalar

Activation = Callable[[jax.Array], jax.Array]


HE = initializers.he_normal()


GLOROT = initializers.glorot_uniform()


def optional_dropout(rate: Scalar | None) -> Layer:
    """Return dropout at a rate, or the layer that does nothing for None."""
    return layers.serial() if rate is None else layers.dropout(rate)


def check_sequence(name: str, sizes: Any) -> None:
    """Raise unless sizes are a sequence.

    Raises:
        ValueError: if they have no length.
    """
    if not hasattr(sizes, "__len__"):
        raise ValueError(f"need a sequence of sizes as {name}, got {name}={sizes!r}")
