"""What a run's own programs compile, how long that takes, and why again."""

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

import fngrad.tree as tree
from fngrad.types import Path


class Compilations:
    """Counts the traces of programs, one run at a time.

    A program is traced and compiled at its first call, and again for arguments of
    another shape, dtype or weak type. The second time in one run is warned of. What
    JAX compiles without tracing, for arrays placed on other devices, is not seen.
    """

    def __init__(self) -> None:
        self._arguments: dict[str, dict[Path, str]] = {}  # of the last trace
        self._traces = 0
        self.begin_run()

    def begin_run(self) -> None:
        """Count anew: programs of an earlier run may be there already."""
        self.count = 0
        self.seconds = 0.0  # tracing and compiling, with the dispatch of those calls
        self._called: set[str] = set()

    def program(
        self, fn: Callable[..., Any], *names: str, donates: str, warns: bool = True
    ) -> Callable[..., Any]:
        """Return a function, jitted and watched.

        Args:
            fn: a pure function of positional arguments.
            names: what they are called in messages.
            donates: the one whose arrays the function may use up.
            warns: whether a second trace in one run is worth a warning.
        """
        name = fn.__name__

        @functools.wraps(fn)
        def traced(*args: Any) -> Any:
            if _is_traced(args):  # not so where jit is off or NaN is looked for
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

        return call

    def notes(self) -> dict[str, Any]:
        """Return the counts as a history notes them."""
        return {"compile_count": self.count, "compile_seconds": self.seconds}

    def _note(self, name: str, arguments: dict[str, Any], warns: bool) -> None:
        now = {path: _kind(leaf) for path, leaf in tree.leaf_paths(arguments).items()}
        before = self._arguments.get(name)
        if warns and before is not None and name in self._called:
            warnings.warn(
                f"the step was compiled again: {_difference(before, now)}",
                stacklevel=2,
            )
        self._arguments[name] = now
        self._traces += 1
        self.count += 1


def _is_traced(arguments: Any) -> bool:
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(arguments))


def calls_again() -> bool:
    """Say whether JAX may call a program's function again, to find the operation.

    It needs the arguments for that, so none may be donated.
    """
    return any(watched_values())


def watched_values() -> tuple[bool, bool]:
    """Return whether JAX watches for NaN and for infinities, by its debugging flags."""
    config: Any = jax.config  # made of settings that type checkers do not know
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
    return "its arguments look alike, so their placement or a setting of JAX changed"


def _explain_deletion(error: Exception, arguments: dict[str, Any]) -> None:
    """Raise an error of more words where an array was not there any more.

    Raises:
        RuntimeError: in the place of JAX's error.
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
        f"need arrays that are still there, got a deleted one: {what}. Its memory was "
        "donated to another call while the run went on; pass an array as an argument "
        "or keep fngrad.snapshot of it, and in a callback of the state"
    ) from error
