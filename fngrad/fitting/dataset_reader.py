"""How the loops' program reads a dataset, which is an argument of it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import fngrad.tree as tree
from fngrad.programs.signatures import batch_of
from fngrad.types import Batch, Path


class DatasetReader(NamedTuple):
    """Rebuilds a dataset from its leaves by path, to read a batch.

    A dataset's structure holds its maps, which may close over large arrays. JAX keeps
    the structure of a program's arguments alive, so programs take only the leaves.
    """

    structure: Any
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, dataset: Any) -> "DatasetReader":
        """Return the reader of a dataset."""
        return cls(jax.tree.structure(dataset), tuple(tree.leaf_paths(dataset)))

    def batch(self, leaves: dict[Path, Any], step: jax.Array) -> Batch:
        """Return the batch of a step."""
        ordered = [leaves[path] for path in self.paths]
        return jax.tree.unflatten(self.structure, ordered).batch(step)


def batch_at(static: Any, argument: Any, step: jax.Array) -> Batch:
    """Return the batch of a step from the two parts of a `Feed`; the loops trace it."""
    is_dataset = isinstance(static, DatasetReader)
    return static.batch(argument, step) if is_dataset else batch_of(static, step)


@functools.lru_cache(maxsize=8)
def batch_program(reader: DatasetReader) -> Callable[[Any, jax.Array], Batch]:
    """Return the jitted program of a reader, traced once per structure of data."""
    return jax.jit(reader.batch)
