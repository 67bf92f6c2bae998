"""Which layers had no key to draw random numbers with while a program was traced.

Layers that draw do so only with a key. A loss that forgets to pass one trains without
them, and nothing in the program shows it.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import fngrad.programs.equations as equations
from fngrad.types import Key

_DRAWS = "random_bits", "threefry2x32"
_KINDS: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar(
    "kinds", default=None
)


@contextlib.contextmanager
def without_key() -> Iterator[set[str]]:
    """Yield the kinds of layers that are traced without a key inside.

    What JAX has traced before is not traced again.
    """
    kinds: set[str] = set()
    token = _KINDS.set(kinds)
    try:
        yield kinds
    finally:
        _KINDS.reset(token)


def note(kind: str, key: Key | None) -> None:
    """Say that a layer which draws was traced, with a key or without.

    Example:
        >>> from fngrad.programs.undrawn_randomness import note, without_key
        >>> with without_key() as kinds:
        ...     note("dropout", None)
        >>> kinds
        {'dropout'}
    """
    kinds = _KINDS.get()
    if kinds is not None and key is None:
        kinds.add(kind)


def draws(jaxpr: Any) -> bool:
    """Return whether a program draws random numbers, in calls and loops too.

    Example:
        >>> import jax
        >>> from fngrad.programs.undrawn_randomness import draws
        >>> key = jax.random.key(0)
        >>> draws(jax.make_jaxpr(lambda key: jax.random.normal(key, (2,)))(key))
        True
        >>> draws(jax.make_jaxpr(lambda key: jax.random.fold_in(key, 1))(key))
        False
    """
    return any(
        equations.name_of(e) in _DRAWS or any(map(draws, equations.inner_jaxprs(e)))
        for e in jaxpr.eqns
    )
