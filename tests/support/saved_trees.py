"""Trees to save, folders to damage, and comparisons of what is restored."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from fngrad.checkpoint import Checkpoints


class Pair(NamedTuple):
    first: Any
    second: Any


def bits(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Return a leaf's dtype, shape and bytes, whatever array type holds it."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return str(leaf.dtype), tuple(leaf.shape), np.ascontiguousarray(data).tobytes()


def assert_same(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        assert bits(a) == bits(b)


def abstract(a: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), a)


def bias_state(optimizer: Any, **params: Any) -> fg.TrainState:
    return fg.init_state(params or {"w": jnp.ones(3)}, optimizer, key=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".writing")


def write(checkpoints: Checkpoints, step: int, loss: float | None = None) -> None:
    metrics = None if loss is None else {"val/loss": loss}
    checkpoints.save(step, {"state": jnp.int32(step)}, metrics=metrics)
    checkpoints.wait()


def damage(folder: Path, name: str) -> None:
    path = folder / name / "arrays" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])


def fail(error: Exception) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises
