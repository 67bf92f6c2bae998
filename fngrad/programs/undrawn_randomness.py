"""Which layers drew no random numbers while a program was traced.

Layers that draw do so only with a key. A loss that forgets to pass one trains without
them, and nothing in the program shows it.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple


class Layers(NamedTuple):
    """The kinds of layers that were traced with a key, and without one."""

    drawn: set[str]
    undrawn: set[str]


_TRACED: contextvars.ContextVar[Layers | None] = contextvars.ContextVar(
    "traced", default=None
)


@contextlib.contextmanager
def observed() -> Iterator[Layers]:
    """Return the layers that are traced inside; what JAX has cached is not."""
    layers = Layers(set(), set())
    token = _TRACED.set(layers)
    try:
        yield layers
    finally:
        _TRACED.reset(token)


def note(kind: str, *, has_key: bool) -> None:
    """Say that a layer which draws was traced, with a key or without.

    Example:
        >>> from fngrad.programs.undrawn_randomness import note, observed
        >>> with observed() as layers:
        ...     note("dropout", has_key=False)
        >>> layers.undrawn
        {'dropout'}
    """
    layers = _TRACED.get()
    if layers is not None:
        (layers.drawn if has_key else layers.undrawn).add(kind)
