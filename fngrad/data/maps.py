"""Functions that a dataset maps over its batches: their forms and their keys."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from fngrad.programs.signatures import parameters
from fngrad.types import Batch, Key

# Keeps the maps' random stream apart from the loss's when both use the same seed.
MAPS = 0x6D617073


def call_map(fn: Callable[..., Batch], batch: Batch, keys: Iterator[Key]) -> Batch:
    """Return ``fn(batch)``, or ``fn(batch, key)`` with the next of the keys."""
    if not takes_key(fn):
        return fn(batch)
    is_key_first = next(iter(parameters(fn))) == "key"
    return fn(next(keys), batch) if is_key_first else fn(batch, key=next(keys))


def map_keys(maps: Sequence[Callable[..., Batch]], key: Key) -> Iterator[Key]:
    """Return a key for each map that takes one; a single map gets the key itself."""
    count = sum(takes_key(fn) for fn in maps)
    if count == 0:
        return iter(())
    return iter([key] if count == 1 else jax.random.split(key, count))


def takes_key(fn: Callable[..., Batch]) -> bool:
    """Return whether a map has an argument named ``key``."""
    return "key" in parameters(fn)


def check_map(fn: Any) -> None:
    """Raise unless a function can be mapped over batches.

    Raises:
        TypeError: if it takes other arguments than a batch and a key.
    """
    if not callable(fn):
        raise TypeError(f"need a function fn(batch) or fn(batch, key), got {fn!r}")
    arguments = parameters(fn)
    required = [
        name
        for name, parameter in arguments.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name != "key"
    ]
    kinds = {parameter.kind for parameter in arguments.values()}
    is_open = inspect.Parameter.VAR_POSITIONAL in kinds or (
        not arguments and not inspect.isfunction(fn)  # some builtins have no signature
    )
    if len(required) != 1 and not (is_open and not required):
        raise TypeError(
            f"need a function fn(batch) or fn(batch, key), got {fn!r} with "
            f"required arguments {required}"
        )
