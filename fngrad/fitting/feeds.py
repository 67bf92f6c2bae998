"""Where batches come from: a dataset, a function of the step, or an iterable.

A dataset is an argument of the compiled program and a function is part of it; both
give any step's batch again. An iterable gives its batches once, from the host.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

import fngrad.tree as tree
from fngrad.data.dataset import Dataset, check_foreign
from fngrad.programs.signatures import batch_of
from fngrad.types import Batch, Path


class Feed:
    """The data of a run, told apart by kind.

    Args:
        data: a dataset of `fngrad.data`, a function ``step -> batch``, or an
            iterable of batches.

    Raises:
        TypeError: another kind, such as arrays that no dataset was made of, or a
            dataset of another library.
        ValueError: an iterable without a batch.
    """

    def __init__(self, data: Any):
        self.data = data
        check_foreign(data)
        self.is_dataset = isinstance(data, Dataset)
        self.failure: BaseException | None = None  # of an iterable that broke off
        self.is_iterable = isinstance(data, Iterable) and not self.is_dataset
        if isinstance(data, Mapping | tuple) or hasattr(data, "dtype"):
            arrays = "splits.train" if hasattr(data, "train") else "arrays"
            raise TypeError(
                f"need a dataset, got arrays ({type(data).__name__}): "
                f"fngrad.data.from_arrays({arrays}, batch_size) makes one"
            )
        if self.is_iterable:
            warnings.warn(
                "batches from an iterable cannot be asked for again, so this run "
                "cannot be resumed exactly; a dataset or a function of the step can",
                stacklevel=3,
            )
            self._first, rest = _first_of(data)
            self.batches = self._caught(_watched(rest, self._first))
        elif not (self.is_dataset or callable(data)):
            raise TypeError(
                "need a dataset, a function step -> batch or an iterable of batches, "
                f"got {type(data).__name__}"
            )

    @property
    def static(self) -> Any:
        """The part of the program: how to read a dataset, or a function of the step."""
        if self.is_dataset:
            return Reading.of(self.data)
        return None if self.is_iterable else self.data

    @property
    def argument(self) -> Any:
        """The argument of the program: a dataset's leaves by path, else nothing."""
        return tree.leaf_paths(self.data) if self.is_dataset else ()

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """The dataset's checksum, if it has one; taken once, as it reads every byte."""
        return self.data.fingerprint() if hasattr(self.data, "fingerprint") else None

    @property
    def arrays(self) -> Any:
        """What a step will meet first: the dataset's leaves, or a first batch."""
        return self._first if self.is_iterable else self.argument

    def _caught(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand on batches to the end, or to a failure, which is kept.

        Raised where the loop asks for a batch, it would take the state with it.
        """
        try:
            yield from batches
        except BaseException as error:
            self.failure = error

    def abstract_batch(self, step: jax.Array) -> Any:
        """Return the shapes and dtypes of a batch."""
        if self.is_iterable:
            return jax.eval_shape(lambda batch: batch, self._first)
        if self.is_dataset:
            return jax.eval_shape(_batch_program(self.static), self.argument, step)
        shapes = functools.partial(jax.eval_shape, self.data)
        return batch_of(self.data, step, shapes)


class Reading(NamedTuple):
    """How a dataset is put together again from its leaves, by path.

    Its structure holds its maps, which may close over large arrays. JAX keeps the
    structure of every argument of a program for long, so programs get the leaves.
    """

    structure: Any
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, dataset: Any) -> "Reading":
        """Return it for this dataset."""
        return cls(jax.tree.structure(dataset), tuple(tree.leaf_paths(dataset)))

    def batch(self, leaves: dict[Path, Any], step: jax.Array) -> Batch:
        """Return the batch of a step."""
        ordered = [leaves[path] for path in self.paths]
        return jax.tree.unflatten(self.structure, ordered).batch(step)


def batch_at(static: Any, argument: Any, step: jax.Array) -> Batch:
    """Return the batch of a step; traced in the body of the loops."""
    is_dataset = isinstance(static, Reading)
    return static.batch(argument, step) if is_dataset else static(step)


@functools.lru_cache(maxsize=8)
def _batch_program(reading: Reading) -> Callable[[Any, jax.Array], Batch]:
    return jax.jit(reading.batch)  # traced once for datasets of one kind


def _first_of(data: Iterable[Batch]) -> tuple[Batch, Iterator[Batch]]:
    batches = iter(data)
    for first in batches:
        return first, batches
    raise ValueError("need an iterable with at least one batch, got none")


def _watched(batches: Iterator[Batch], first: Batch) -> Iterator[Batch]:
    """Hand on batches; warn of each new shape or dtype, which compiles again."""
    seen = [first]
    for batch in itertools.chain([first], batches):
        differences = [tree.mismatch(known, batch) for known in seen]
        if all(differences):
            seen.append(batch)
            warnings.warn(
                f"the step compiles again for a batch unlike the first: "
                f"{differences[0]}",
                stacklevel=2,
            )
        yield batch
