"""Where batches come from: a dataset, a function of the step, or an iterable.

A dataset is an argument of the compiled program and a function is part of it; both
give any step's batch again. An iterable gives its batches once, from the host.
"""

import functools
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

import fngrad.tree as tree
from fngrad.batching import Dataset, check_foreign
from fngrad.signatures import batch_of
from fngrad.types import Batch


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
            raise TypeError(
                f"need a dataset, got arrays ({type(data).__name__}): "
                "fngrad.data.from_arrays(arrays, batch_size) makes one"
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
        """The part of the program: a function of the step, else None."""
        return None if self.is_dataset or self.is_iterable else self.data

    @property
    def argument(self) -> Any:
        """The argument of the program: a dataset, else nothing."""
        return self.data if self.is_dataset else ()

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """The dataset's checksum, if it has one; taken once, as it reads every byte."""
        return self.data.fingerprint() if hasattr(self.data, "fingerprint") else None

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
            return jax.eval_shape(_dataset_batch, self.data, step)
        shapes = functools.partial(jax.eval_shape, self.data)
        return batch_of(self.data, step, shapes)


def batch_at(static: Any, argument: Any, step: jax.Array) -> Batch:
    """Return the batch of a step; traced in the body of the loops."""
    return static(step) if static else argument.batch(step)


@jax.jit
def _dataset_batch(dataset: Any, step: jax.Array) -> Batch:
    return dataset.batch(step)  # jitted: traced once for datasets of one kind


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
