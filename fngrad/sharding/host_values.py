"""Values on the host of arrays whose devices belong to several processes.

A process reads an array if all of it is on its own devices, or if each device has the
whole. What is split over the devices of several processes is gathered first, in a
computation that all of them start.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fngrad.tree as tree
from fngrad.types import Tree


def readable(a: Tree) -> Tree:
    """Return a tree whose arrays this process can read; all processes call it.

    Arrays that it can read already stay as they are, on one process all.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.sharding.host_values import readable
        >>> x = jnp.ones(2)
        >>> readable({"x": x})["x"] is x
        True
    """
    return jax.tree.map(_readable, a)


def _readable(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    return _gather(x.sharding.mesh)(x)  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=8)
def _gather(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def on_this_process(a: Tree) -> Tree:
    """Return a tree whole on the default device of this process; all call it."""

    def copied(x: Any) -> Any:
        if tree.is_key(x):
            data = jnp.asarray(np.asarray(jax.random.key_data(x)))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(copied, readable(a))
