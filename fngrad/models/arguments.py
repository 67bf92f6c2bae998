"""What several architectures take: activations, dropout, sizes."""

from collections.abc import Callable
from typing import Any

import jax

import fngrad.layers as layers
import fngrad.numerics as numerics
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


def optional_drop_path(rate: Scalar | None) -> Layer:
    """Return drop path at a rate, or the identity for None.

    Args:
        rate: in [0, 1], may be a tracer; or None.

    Raises:
        ValueError: if the rate is a number outside [0, 1].
    """
    return layers.serial() if rate is None else layers.drop_path(rate)


def rates_by_depth(rate: Scalar | None, count: int) -> list[Any]:
    """Return a rate for each of ``count`` blocks, from 0 to ``rate`` in equal steps.

    Args:
        rate: of the last block, in [0, 1], may be a tracer; None for none.
        count: number of blocks, at least 1.

    Raises:
        ValueError: if the rate is a number outside [0, 1].
    """
    numerics.check_number("drop_path_rate", rate, 0.0, 1.0, optional=True)
    if rate is None:
        return [None] * count
    return [rate * (i / (count - 1) if count > 1 else 1.0) for i in range(count)]


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
