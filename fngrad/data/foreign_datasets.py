"""Datasets of other libraries, which are recognized by their methods."""

from collections.abc import Iterable
from typing import Any

from fngrad.data.dataset import Dataset
from fngrad.data.sources import Source


def check_foreign(data: Any) -> None:
    """Raise for another library's dataset, whose ``batch`` is another method.

    One that can only be iterated over, as grain's IterDataset, is an iterable.

    Raises:
        TypeError: if the data have a method ``batch`` and are neither a `Dataset` nor a
            `Source`, nor only an iterable.
    """
    is_ours = isinstance(data, Dataset | Source)
    is_stream = isinstance(data, Iterable) and not hasattr(data, "__getitem__")
    if callable(getattr(data, "batch", None)) and not (is_ours or is_stream):
        raise TypeError(
            "need a dataset of fngrad.data or a function step -> batch, got "
            f"{type(data).__name__}, which has a batch of its own: where "
            "theirs.batch(step) gives a batch pass data=theirs.batch; fit also takes "
            "an iterable of batches, data=iter(theirs), and where theirs[i] gives an "
            "example, fngrad.data.from_source(theirs, len(theirs), batch_size)"
        )
