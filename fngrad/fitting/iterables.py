"""Batches from an iterable: each is given once, unless its iterator has a state.

The iterators of grain have one, ``get_state()`` and ``set_state(state)``; a checkpoint
holds it, and a run continues with the batch that would have come next.
"""

import base64
import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.programs.caller_warnings import warn
from fngrad.types import Batch


class Batches:
    """The batches of an iterable, of which the first is read at once.

    Args:
        data: the iterable.
        place: puts a batch where it is used.

    Raises:
        ValueError: if there is no batch.
    """

    def __init__(self, data: Iterable[Batch], place: Callable[[Batch], Batch]):
        self._iterator = iter(data)
        self._place = place
        self._pending = self._state()  # until the first batch is asked for
        for first in self._iterator:
            self.first: Batch = place(first)
            break
        else:
            raise ValueError("need an iterable with at least one batch, got none")

    @property
    def is_stateful(self) -> bool:
        """Whether the iterator has a state that can be saved and set."""
        return _is_stateful(self._iterator)

    def __iter__(self) -> Iterator[Batch]:
        return _warn_of_shapes(self._from_first(), self.first)

    def _from_first(self) -> Iterator[Batch]:
        rest = map(self._place, self._iterator)
        for batch in itertools.chain([self.first], rest):
            self._pending = None
            yield batch

    def notes(self) -> dict[str, Any] | None:
        """Return the state before the next batch, as JSON can hold it, if any."""
        state = self.state()
        if isinstance(state, bytes):
            return {"base64": base64.b64encode(state).decode("ascii")}
        return None if state is None else {"json": state}

    def state(self) -> Any:
        """Return the state before the next batch, if the iterator has one."""
        return self._state() if self._pending is None else self._pending

    def end_at(self, state: Any) -> None:
        """Note a `state` again, after which no batch that was read is used."""
        self._pending = state

    def resume(self, notes: dict[str, Any]) -> Iterator[Batch]:
        """Return the batches that follow a state, from `notes`."""
        text = notes.get("base64")
        state = notes["json"] if text is None else base64.b64decode(text)
        self._iterator.set_state(copy.deepcopy(state))  # type: ignore[attr-defined]
        self._pending = None
        return _warn_of_shapes(map(self._place, self._iterator), self.first)

    def _state(self) -> Any:
        """Return a copy of the state, which the iterator may go on to change."""
        return _state_of(self._iterator) if self.is_stateful else None


def set_back(data: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context after which the batches that were read in it come again.

    Data that make a new iterator for each loop need nothing.

    Raises:
        TypeError: if all loops share an iterator, which has no state to be set.
    """
    is_iterable = isinstance(data, Iterable) and not isinstance(data, Dataset)
    if not is_iterable or hasattr(data, "dtype"):
        return contextlib.nullcontext()
    iterator = iter(data)
    if iterator is not iter(data):
        return contextlib.nullcontext()
    if not _is_stateful(iterator):
        raise TypeError(
            "need data for a dry run that can be read again, got the iterator "
            f"{type(iterator).__name__}, whose first batches the run would miss: pass "
            "a dataset, a function of the step, a list or a loader"
        )
    stack = contextlib.ExitStack()
    stack.callback(iterator.set_state, _state_of(iterator))  # type: ignore[attr-defined]
    return stack


def _is_stateful(iterator: Any) -> bool:
    return all(hasattr(iterator, f"{do}_state") for do in ("get", "set"))


def _state_of(iterator: Any) -> Any:
    return copy.deepcopy(iterator.get_state())


def _warn_of_shapes(batches: Iterator[Batch], first: Batch) -> Iterator[Batch]:
    """Yield batches; warn about each new shape or dtype, which compiles again."""
    seen = [_outlined(first)]
    for batch in batches:
        differences = [tree.mismatch(known, batch) for known in seen]
        if all(differences):
            seen.append(_outlined(batch))
            warn(
                f"the step compiles again for a batch unlike the first: "
                f"{differences[0]}"
            )
        yield batch


def _outlined(batch: Batch) -> Batch:
    """Return shapes and dtypes of a batch, whose arrays need not be kept for them."""

    def outline(x: Any) -> Any:
        if isinstance(x, jax.Array):
            return jax.eval_shape(lambda x: x, x)
        return (
            np.broadcast_to(np.zeros((), x.dtype), x.shape)
            if hasattr(x, "dtype")
            else x
        )

    return jax.tree.map(outline, batch)
