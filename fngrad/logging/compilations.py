"""Counts what a run compiles, how long that takes, and why it compiles again."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

import fngrad.tree as tree
from fngrad.programs.caller_warnings import warn
from fngrad.types import Path


class Compilations:
    """Counts the traces of programs, one run at a time.

    A program is traced and compiled at its first call, and again for arguments of
    another shape, dtype or weak type. The second time in one run gives a warning. What
    JAX compiles without tracing, for arrays on other devices, is not counted.
    """

    def __init__(self) -> None:
        self._arguments: dict[str, dict[Path, str]] = {}  # of the last trace
        self._traces = 0
        self.begin_run()

    def begin_run(self) -> None:
        """Reset the counts; programs of earlier runs stay compiled."""
        self.count: int = 0
        self.seconds: float = 0.0  # tracing, compiling and dispatching those calls
        self._called: set[str] = set()

    def program(
        self, fn: Callable[..., Any], *names: str, donates: str, warns: bool = True
    ) -> Callable[..., Any]:
        """Return a function, jitted, whose traces are counted.

        Args:
            fn: a pure function of positional arguments.
            names: of its arguments, for messages.
            donates: the argument whose arrays are donated.
            warns: whether a second trace in one run gives a warning.
        """
        name = fn.__name__

        @functools.wraps(fn)
        def traced(*args: Any) -> Any:
            if _is_traced(args):  # false if jit is disabled or while JAX debugs NaN
                self._note(name, dict(zip(names, args, strict=True)), warns)
            return fn(*args)

        jitted = jax.jit(traced, donate_argnums=names.index(donates))
        kept = jax.jit(traced)

        def call(*args: Any) -> Any:
            traces, start = self._traces, time.perf_counter()
            try:
                made = (kept if calls_again() else jitted)(*args)
            except (RuntimeError, ValueError) as error:
                _explain_deletion(error, dict(zip(names, args, strict=True)))
                raise
            if self._traces > traces:
                self.seconds += time.perf_counter() - start
            self._called.add(name)
            return made

        call.lower = jitted.lower  # type: ignore[attr-defined]
        return call

    def notes(self) -> dict[str, Any]:
        """Return the counts as entries of ``history.notes``."""
        return {"compile_count": self.count, "compile_seconds": self.seconds}

    def _note(self, name: str, arguments: dict[str, Any], warns: bool) -> None:
        now = {path: _kind(leaf) for path, leaf in tree.leaf_paths(arguments).items()}
        before = self._arguments.get(name)
        if warns and before is not None and name in self._called:
            warn(f"the step was compiled again: {_difference(before, now)}")
        self._arguments[name] = now
        self._traces += 1
        self.count += 1


def _is_traced(arguments: Any) -> bool:
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(arguments))


def calls_again() -> bool:
    """Return whether JAX may call a function again to find what made a NaN.

    It needs the arguments for that, so none may be donated.
    """
    return any(watched_values())


def watched_values() -> tuple[bool, bool]:
    """Return JAX's debugging flags for NaN and for infinities."""
    config: Any = jax.config  # type checkers do not know its settings
    return config.jax_debug_nans, config.jax_debug_infs


def _kind(leaf: Any) -> str:
    aval = jax.typeof(leaf)
    weakness = "weak " if getattr(aval, "weak_type", False) else ""
    return f"{weakness}{aval.dtype}{list(aval.shape)}"


def _difference(before: dict[Path, str], now: dict[Path, str]) -> str:
    for path in before | now:
        if before.get(path) != now.get(path):
            was, became = before.get(path, "not there"), now.get(path, "not there")
            return f"{path!r} was {was} and is {became}"
    return (
        "shapes and dtypes of its arguments are unchanged, so their placement or a "
        "setting of JAX changed"
    )


def _explain_deletion(error: Exception, arguments: dict[str, Any]) -> None:
    """Raise an error that names the array that was deleted, if JAX's error is of one.

    Raises:
        RuntimeError: from JAX's error.
    """
    if "been deleted" not in str(error):
        return
    lost = [
        path
        for path, leaf in tree.leaf_paths(arguments).items()
        if isinstance(leaf, jax.Array) and leaf.is_deleted()
    ]
    what = f"{lost[0]!r}" if lost else "one that the step or its data close over"
    raise RuntimeError(
        f"need arrays that still exist, got a deleted one: {what}. Its memory was "
        "donated to another call during the run; pass the array as an argument or keep "
        "fngrad.snapshot of it, and in a callback keep a snapshot of the state"
    ) from error
