"""Keys from seeds of any size."""

import functools
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.numerics.checks import check_count

_FOLDED_SEED = 2**31  # above every step: no seed gives the key of a step


def key(seed: int | jax.Array) -> jax.Array:
    r"""Return a typed PRNG key from an int (also traced) or from a typed key.

    All bits of an int matter, and its sign. With the 32-bit words
    $w_0 + 2^{32} w_1 + \dots$ of $s \ge 0$, or of $-1 - s$ where s is negative,

    $$k = \mathrm{key}(w_0) \text{ if } 0 \le s < 2^{32}, \text{ else }
      \mathrm{fold}(\dots \mathrm{fold}(\mathrm{fold}(\mathrm{key}(w_0), h), w_1)
      \dots, w_m), \quad h = 2^{31} + 2 m + [s < 0] .$$

    No step of a run has the number h, so the key differs from all keys of a run with
    the seed $w_0$. An array or a traced int gives the key of the Python int of its
    value.

    Args:
        seed: an int of any size, an integer scalar, or a typed key.

    Raises:
        TypeError: if it is anything else, such as a bool or the raw uint32 words of
            an old-style key.

    Example:
        >>> import jax
        >>> import fngrad.numerics as numerics
        >>> numerics.key(5) == jax.random.key(5), numerics.key(5) == numerics.key(-5)
        (Array(True, dtype=bool), Array(False, dtype=bool))
    """
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if isinstance(seed, jax.Array) and _is_integer_scalar(seed):
        return _key_of_array(seed)
    if isinstance(seed, np.ndarray) and _is_integer_scalar(seed):
        seed = int(seed)
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool):
        raise TypeError(f"need an int or a typed key, got {_described(seed)}")
    return _key_of_int(int(seed))


def _described(seed: Any) -> str:
    """Return what was given for a key, with the ways out."""
    if getattr(seed, "dtype", None) == jnp.uint32 and jnp.ndim(seed):
        return (
            f"the raw words uint32{list(jnp.shape(seed))}, as jax.random.PRNGKey makes "
            "them: pass the int itself, jax.random.key(seed), or "
            "jax.random.wrap_key_data(words)"
        )
    return f"{seed!r}: jax.random.key(seed) makes a key of an int"


def check_seed(seed: Any) -> None:
    """Raise unless a seed of NumPy's generators is an int >= 0.

    Raises:
        ValueError: if it is not.
    """
    check_count("seed", seed)


def _is_integer_scalar(x: Any) -> bool:
    return x.shape == () and jnp.issubdtype(x.dtype, jnp.integer)


def _key_of_int(seed: int) -> jax.Array:
    rest = seed if seed >= 0 else -1 - seed
    low, rest = rest % 2**32, rest >> 32
    higher = []
    while rest:
        higher.append(np.uint32(rest % 2**32))
        rest >>= 32
    first = _key_of_word(low)
    if seed >= 0 and not higher:
        return first
    head = np.uint32(_FOLDED_SEED + 2 * len(higher) + (seed < 0))
    return functools.reduce(jax.random.fold_in, [head, *higher], first)


def _key_of_word(word: int) -> jax.Array:
    """Return ``jax.random.key(word)``, 0 <= word < 2**32, compiling nothing if it can.

    Of Threefry, the default, the bits are the word itself.
    """
    if jax.config.jax_default_prng_impl != "threefry2x32":  # pyright: ignore
        return jax.random.key(np.uint32(word))
    bits = jax.device_put(np.array([0, word], np.uint32))
    return jax.random.wrap_key_data(bits, impl="threefry2x32")


def _key_of_array(seed: jax.Array) -> jax.Array:
    """Return the result of `_key_of_int` for an integer scalar of at most 64 bits."""
    is_negative = seed < 0
    words = jnp.where(is_negative, ~seed, seed)
    is_long = seed.dtype.itemsize == 8
    high = (words >> 32 if is_long else jnp.zeros_like(words)).astype(jnp.uint32)
    first = jax.random.key(words.astype(jnp.uint32))
    if jnp.issubdtype(seed.dtype, jnp.unsignedinteger) and not is_long:
        return first
    count = (high > 0).astype(jnp.uint32)
    head = np.uint32(_FOLDED_SEED) + 2 * count + is_negative.astype(jnp.uint32)
    folded = jax.random.fold_in(first, head)
    if is_long:
        folded = jnp.where(high > 0, jax.random.fold_in(folded, high), folded)
    return jnp.where(is_negative | (high > 0), folded, first)
