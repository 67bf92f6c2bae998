"""What becomes of a run that an exception ends: none of its work is lost.

The exception carries the state and the history that were reached, and says so in a
note. It is never hidden by what fails after it.
"""

from typing import Any, NamedTuple

import jax

from fngrad.files.json_values import from_json_number
from fngrad.fitting.validation import Values
from fngrad.logging.history import History
from fngrad.training import TrainState


class Look(NamedTuple):
    """How far the host has come with a step at which it looks.

    An exception may end the run in the middle. The checkpoint that is written then
    holds this, so that the next call does what is left, and nothing twice.
    """

    evaluates: bool
    values: Values | None = None  # all that is told, once it is known
    is_logged: bool = False
    called: int = 0  # so many callbacks

    @classmethod
    def of(cls, notes: dict[str, Any] | None) -> "Look | None":
        """Return what a checkpoint's notes say; None where nothing is left to do."""
        if notes is None:
            return None
        look = cls(**notes)
        if look.values is None:
            return look
        values = {name: from_json_number(x) for name, x in look.values.items()}
        return look._replace(values=values)


def attach(error: BaseException, state: TrainState | None, history: History) -> None:
    """Give an exception the state and the history, but for a name it uses itself."""
    for name, value, kind in (
        ("state", state, TrainState),
        ("history", history, History),
    ):
        own = getattr(error, name, None)
        if own is None or isinstance(own, kind):
            try:
                setattr(error, name, value)
            except (AttributeError, TypeError):
                note(error, f"its class takes no attribute {name!r}")


def note(error: BaseException, words: str) -> None:
    """Add a line to what is printed of an exception."""
    error.add_note(f"fit: {words}")


def is_there(state: TrainState) -> bool:
    """Say whether no memory of a state was given to a step that did not end."""
    leaves = jax.tree.leaves(state)
    return not any(isinstance(x, jax.Array) and x.is_deleted() for x in leaves)
