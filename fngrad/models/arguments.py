"""What several architectures take: activations, initializers, dropout, sizes."""

from collections.abc import Callable
from typing import Any

import jax

import fngrad.layers as layers
from fngrad.layers.core import Layer
from fngrad.types import Scalar

Activation = Callable[[jax.Array], jax.Array]  # entry by entry


def optional_dropout(rate: Scalar | None) -> Layer:
    """Return dropout at a rate, or the identity for None.

    Args:
        rate: in [0, 1], may be a tracer; or None.

    Raises:
        ValueError: if the rate is a number outside [0, 1].
    """
    return layers.serial() if rate is None else layers.dropout(rate)


def check_sequence(name: str, sizes: Any) -> None:
    """Raise unless sizes are a sequence.

    Args:
        name: of the argument, for the message.
        sizes: the argument.

    Raises:
        ValueError: if they have no length.
    """
    if not hasattr(sizes, "__len__"):
        raise ValueError(f"need a sequence of sizes as {name}, got {name}={sizes!r}")
