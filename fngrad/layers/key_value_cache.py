"""The keys and values of the positions before, for attention one token at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics


class KeyValueCache(NamedTuple):
    """Keys and values that `fngrad.layers.cached` attention keeps from call to call.

    The slot of position p is p modulo the number of slots.
    """

    keys: jax.Array  # shape (slots, kv_heads, head_size), turned if rotary
    values: jax.Array  # shape (slots, kv_heads, head_size)
    step: jax.Array  # int32, shape (): the position of the next token


class Sources(NamedTuple):
    """What the positions of one call may attend to."""

    keys: jax.Array  # shape (context_length, kv_heads, head_size)
    values: jax.Array
    positions: jax.Array  # int, shape (context_length,); below 0 is no position
    is_bad: jax.Array  # bool, shape (context_length,): not finite, held as 0


def empty(
    max_length: int, window: int | None, shape: tuple[int, int], dtype: Any
) -> KeyValueCache:
    """Return a cache without keys.

    Args:
        max_length: number of positions.
        window: how many of them a position attends to; more are not kept.
        shape: ``(kv_heads, head_size)``.
        dtype: of keys and values.
    """
    slots = max_length if window is None else min(window, max_length)
    keys, values = (jnp.zeros((slots, *shape), dtype) for _ in range(2))
    return KeyValueCache(keys, values, jnp.zeros((), jnp.int32))


def is_past_end(
    cache: KeyValueCache, positions: jax.Array, window: int | None
) -> jax.Array:
    """Return which positions have no slot; those of a window that rolls all have."""
    if _rolls(cache, window):
        return jnp.zeros(positions.shape, bool)
    return positions >= len(cache.keys)


def extended(
    cache: KeyValueCache, new: Sources, window: int | None
) -> tuple[Sources, KeyValueCache]:
    """Return what new positions may attend to, and the cache with them.

    New positions below 0 are not kept, nor those for which there is no slot.

    Args:
        cache: of the positions before.
        new: of the positions from ``cache.step`` on.
        window: how many positions a position attends to.
    """
    # A NaN in a key shows wherever the key is seen, and is hidden where it is not.
    keys = numerics.replaced(new.is_bad[:, None, None], new.keys, jnp.nan)
    new, rolls = new._replace(keys=keys), _rolls(cache, window)
    longer = _written(cache, new, rolls)
    if len(new.keys) == 1 or not rolls:
        return _held(longer, rolls, keys.dtype), longer
    # The first of several positions see what the last of them replace.
    both = zip(_held(cache, rolls, keys.dtype), new, strict=True)
    together = Sources(*[jnp.concatenate(pair) for pair in both])
    return together._replace(is_bad=jnp.zeros_like(together.is_bad)), longer


def _rolls(cache: KeyValueCache, window: int | None) -> bool:
    """Return whether new positions take the slots of those that left the window."""
    return window is not None and window <= len(cache.keys)


def _written(cache: KeyValueCache, new: Sources, rolls: bool) -> KeyValueCache:
    slots = len(cache.keys)
    places = new.positions % slots if rolls else new.positions
    # An index past the last slot is dropped; one below 0 would count from the end,
    # where it could be the slot of another position.
    places = jnp.where(new.positions < 0, slots, places)
    places = places[-slots:] if rolls else places

    def write(to: jax.Array, values: jax.Array) -> jax.Array:
        kept = values[-len(places) :].astype(to.dtype)
        return to.at[places].set(kept, mode="drop")

    keys, values = write(cache.keys, new.keys), write(cache.values, new.values)
    return KeyValueCache(keys, values, cache.step + len(new.keys))


def _held(cache: KeyValueCache, rolls: bool, dtype: Any) -> Sources:
    """Return what a cache holds; a slot without a key has a position below 0."""
    slots = len(cache.keys)
    last = (cache.step if rolls else jnp.minimum(cache.step, slots)) - 1
    positions = last - (last - jnp.arange(slots, dtype=jnp.int32)) % slots
    keys, values = cache.keys.astype(dtype), cache.values.astype(dtype)
    return Sources(keys, values, positions, jnp.zeros(slots, bool))
