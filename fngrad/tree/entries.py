"""All entries of a tree at once: how many, the extremes, drawn, compared."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
from fngrad.tree.paths import mismatch
from fngrad.types import Key, Tree


def size(a: Any) -> int:
    """Return the number of entries of all leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.tree as tree
        >>> tree.size({"weight": jnp.zeros((3, 2)), "bias": jnp.zeros(2)})
        8
    """
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(a))


def max(a: Any) -> jax.Array:
    """Return the largest entry of all leaves, NaN if one is NaN, shape ().

    Raises:
        ValueError: if there are no entries.
    """
    return _extreme(numerics.largest, jnp.maximum, a)


def min(a: Any) -> jax.Array:
    """Return the smallest entry of all leaves, NaN if one is NaN, shape ().

    Raises:
        ValueError: if there are no entries.
    """
    return _extreme(numerics.smallest, jnp.minimum, a)


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> jax.Array:
    """Return whether all entries agree, |a - b| <= atol + rtol |b|: a bool, shape ().

    Raises:
        ValueError: if the trees differ in structure or shapes; the leaf is named.
    """
    difference = mismatch(b, a, dtypes=False)
    if difference:
        raise ValueError(f"need two trees of one structure and shapes: {difference}")

    def close(x: Any, y: Any) -> jax.Array:
        dtype = _common_dtype([x, y])
        x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
        return jnp.allclose(x, y, rtol=rtol, atol=atol)

    answers = jax.tree.map(close, a, b)
    return jax.tree.reduce(jnp.logical_and, answers, jnp.ones((), bool))


def random_like(
    key: int | Key, a: Tree, sampler: Callable[..., jax.Array] = jax.random.normal
) -> Tree:
    """Return a tree with the structure, shapes and dtypes of ``a``, drawn at random.

    Args:
        key: an int or a typed key; each leaf gets a key split from it.
        a: a tree of arrays or of ``jax.ShapeDtypeStruct``.
        sampler: called as ``sampler(key, shape, dtype)``, such as
            `jax.random.rademacher`.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.tree as tree
        >>> print(tree.random_like(0, {"w": jnp.zeros(2)})["w"].shape)
        (2,)
    """
    leaves, structure = jax.tree.flatten(a)
    keys = jax.random.split(numerics.key(key), len(leaves)) if leaves else []
    drawn = [sampler(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return structure.unflatten(drawn)


def _extreme(
    of_leaf: Callable[..., jax.Array], of_two: Callable[..., jax.Array], a: Any
) -> jax.Array:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(a) if np.size(leaf)]
    if not leaves:
        raise ValueError("need at least one entry, got a tree without entries")
    dtype = _common_dtype(leaves)
    return functools.reduce(of_two, (of_leaf(x).astype(dtype) for x in leaves))


def _common_dtype(leaves: list[Any]) -> Any:
    """Return the dtype that holds all, also where JAX promotes only strictly."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(jnp.asarray(leaf).dtype for leaf in leaves))
