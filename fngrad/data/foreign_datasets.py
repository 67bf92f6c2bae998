"""Datasets of other libraries, which are recognized by their methods."""

from collections.abc import Iterable
from typing import Any

from fngrad.data.dataset import Dataset
from fngrad.data.sources import Source
from fngrad.programs.signatures import parameters

_AS_ARRAYS = '.with_format("numpy")'  # of Hugging Face


def check_foreign(data: Any) -> None:
    """Raise for another library's dataset, whose ``batch`` is another method.

    One that can only be iterated over, as grain's IterDataset, is an iterable. Those of
    torch have an index that raises, and no length.

    Raises:
        TypeError: if the data have a method ``batch`` and are neither a `Dataset` nor a
            `Source`, nor only an iterable.
    """
    is_ours = isinstance(data, Dataset | Source)
    is_stream = isinstance(data, Iterable) and not _is_indexed(data)
    if callable(getattr(data, "batch", None)) and not (is_ours or is_stream):
        raise TypeError(
            "need a dataset of fngrad.data or a function step -> batch, got "
            f"{type(data).__name__}, which has a batch of its own: {_ways_out(data)}"
        )


def ways_to_read(data: Any) -> str:
    """Return how a source reads another library's dataset; "" if it cannot."""
    if not _is_indexed(data):
        return ""
    theirs = f"theirs{_AS_ARRAYS if _is_of_columns(data) else ''}"
    made = f"fngrad.data.from_source({theirs}, len(theirs), batch_size)"
    return f"where theirs[i] is an example, {made} makes batches"


def _is_indexed(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _is_of_columns(data: Any) -> bool:
    """Return whether it gives lists unless it has a format, as Hugging Face's does."""
    return all(callable(getattr(data, name, None)) for name in ("with_format", "iter"))


def _ways_out(data: Any) -> str:
    read = ways_to_read(data)
    if _is_of_columns(data):
        batches = f"data=theirs{_AS_ARRAYS}.iter(batch_size)"
        ways = [read, f"fit also takes an iterable of batches, {batches}"]
    elif any("size" in name for name in parameters(data.batch)):
        batches = "where theirs[i] is a batch, as of theirs.batch(batch_size), fit"
        ways = [read, f"{batches} takes an iterable of batches, data=iter(theirs)"]
    else:
        ways = ["where theirs.batch(step) is a batch, pass data=theirs.batch", read]
    return "; ".join(filter(None, ways))
