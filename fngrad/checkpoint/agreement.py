"""What the first of several processes decides, and errors that all then raise."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from fngrad.checkpoint.errors import CheckpointError, UnreadableError
from fngrad.distributed import Processes

_T = TypeVar("_T")
_KINDS = {kind.__name__: kind for kind in (CheckpointError, UnreadableError)}


def decided(mine: Processes, decide: Callable[[], _T]) -> _T:
    """Return what ``decide()`` gives in the first process; all call this.

    Args:
        mine: the processes.
        decide: called in the first process only; with several, what it returns is told
            in JSON's types.

    Raises:
        CheckpointError: if it raises one there; all processes raise it.
    """
    if mine.count == 1:
        return decide()
    told: dict[str, Any] = {}
    if mine.is_first:
        try:
            told = {"value": decide()}
        except CheckpointError as error:
            told = {"kind": type(error).__name__, "text": str(error)}
    told = json.loads(mine.texts(json.dumps(told))[0])
    if "kind" in told:
        raise _KINDS[told["kind"]](told["text"])
    return told["value"]


def raise_together(mine: Processes, error: BaseException | None) -> None:
    """Raise in all processes if one has an error; all call this.

    Raises:
        CheckpointError: with the causes; that of the first process knows of others. Or
            if a process has ended, so that they cannot be told.
    """
    own = "" if error is None else cause(error)
    try:
        texts = mine.texts(own)
    except Exception as lost:
        text = own or f"need all processes, got one that has ended: {cause(lost)}"
        raise CheckpointError(text) from (error or lost)
    causes = texts[:1] if texts[0] else []
    for rank, text in enumerate(texts):
        if rank and text and text not in texts[0]:
            causes.append(f"process {rank}: {text}")
    if causes:
        raise CheckpointError("; ".join(causes)) from error


def cause(error: BaseException) -> str:
    """Return the text of an error, with its type unless it is of a checkpoint."""
    if isinstance(error, CheckpointError):
        return str(error)
    return f"{type(error).__name__}: {error}"
