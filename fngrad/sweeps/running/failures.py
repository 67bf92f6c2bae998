"""Combinations of static values whose training raises, recorded beside the others."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fngrad.programs.caller_warnings import warn
from fngrad.programs.printed import recorded
from fngrad.sweeps.results.result import Failure
from fngrad.sweeps.running.peers import PeerEndedError, Peers

_T = TypeVar("_T")


class Failures:
    """The exceptions of the combinations that failed, by number.

    Args:
        combinations: the static values of each, by name.
        peers: the processes of the sweep; all record a failure of one.
        count: how many combinations there are, where not all are known from the start.
    """

    def __init__(
        self,
        combinations: Sequence[dict[str, Any]],
        peers: Peers,
        count: int | None = None,
    ):
        self._combinations, self._peers, self._count = combinations, peers, count
        self._errors: dict[int, Exception] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._errors))

    def attempt(
        self,
        number: int,
        fn: Callable[..., _T],
        *args: Any,
        fatal: tuple[type[Exception], ...] = (),
    ) -> _T | None:
        """Return ``fn(*args)``, or None if it raises, which is recorded.

        What ends the program, such as a KeyboardInterrupt, is raised, and so is the
        FloatingPointError by which ``jax_debug_nans`` stops at a NaN.

        Args:
            number: of the combination that ``fn`` traces, compiles or trains.
            fn: called with ``args``.
            args: its arguments.
            fatal: other exceptions that are raised.

        Raises:
            Exception: of the first combination, if all have failed.
        """
        found, error = None, None
        try:
            found = fn(*args)
        except (FloatingPointError, PeerEndedError, *fatal):
            raise
        except Exception as raised:
            error = raised
        error = self._peers.settle(error)
        if error is None:
            return found
        self._errors[number] = error
        if self._count in (None, len(self._combinations)):
            self.check_one_works()
        return None

    def check_one_works(self) -> None:
        """Raise if all combinations have failed.

        Raises:
            Exception: of the first combination.
        """
        if len(self._errors) == len(self._combinations):
            raise self._first()

    def warn(self, number: int) -> None:
        """Warn that a combination failed, and where its exception is recorded."""
        warn(
            f"train_fn failed with {_text(self._combinations[number])}: "
            f"{_one_line(self._errors[number])}; the other combinations go on, and "
            'the traceback is in the result\'s notes["failures"]'
        )

    def record(self, points: Mapping[int, list[int]]) -> list[Failure]:
        """Return the failures in the order of the combinations.

        Args:
            points: the numbers of the points of each, in the result.
        """
        return [
            Failure(
                static=dict(self._combinations[number]),
                points=points[number],
                error=_one_line(error),
                traceback="".join(traceback.format_exception(error)),
            )
            for number, error in sorted(self._errors.items())
        ]

    def _first(self) -> Exception:
        """Return the exception of the first combination; the others are counted."""
        number, first = min(self._errors.items())
        count = len(self._combinations)
        if count > 1:
            first.add_note(
                f"with {_text(self._combinations[number])}; all {count} combinations "
                "of static values failed"
            )
        return first


def _text(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={recorded(x)[:60]}" for name, x in values.items())


def _one_line(error: Exception) -> str:
    """Return the type and the first line of the message."""
    first, *_ = [*str(error).strip().splitlines(), ""]
    return f"{type(error).__name__}: {first}"
