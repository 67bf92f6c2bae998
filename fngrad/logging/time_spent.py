"""What the wall time of a run was spent on.

JAX reports through `jax.monitoring` how long each trace and each compilation took; the
run itself marks the rest.
"""

import contextlib
import contextvars
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax.monitoring

PARTS = ("tracing", "compiling", "data", "stepping", "evaluating", "saving", "other")
_PART_OF_EVENT = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "compiling",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
_T = TypeVar("_T")


class TimeSpent:
    """Divides the wall time since it was made into parts; their sum is that time.

    - ``tracing``: JAX traces Python functions.
    - ``compiling``: lowering and compiling, or reading from the compilation cache.
    - ``data``: waiting for the next batch of an iterable.
    - ``stepping``: from dispatching steps until their metrics are on the host, which
      waits for the device there.
    - ``evaluating``: the same for evaluations.
    - ``saving``: copying the state to the host and waiting for the writer. Writing in
      the background is not counted.
    - ``other``: everything else, such as checks, timing two loops, callbacks, pictures.

    Args:
        clock: returns seconds.

    Example:
        >>> from fngrad.logging.time_spent import TimeSpent
        >>> times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 10.0])
        >>> spent = TimeSpent(clock=lambda: next(times))
        >>> with spent.on("stepping"), spent.on("data"):
        ...     pass
        >>> {part: t for part, t in spent.seconds().items() if t}
        {'data': 3.0, 'stepping': 6.0, 'other': 1.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._part = "other"  # the one that is being counted
        self._since = clock()
        self._events: list[tuple[float, float]] = []  # (middle, seconds), counted

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part until now."""
        self._count()
        return dict(self._seconds)

    @property
    def compiling(self) -> float:
        """The seconds of tracing and compiling until now."""
        return self._seconds["tracing"] + self._seconds["compiling"]

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count a block for a part, not for the one around it."""
        self._count()
        outer, self._part = self._part, part
        try:
            yield
        finally:
            self._count()
            self._part = outer

    def waiting_for(self, batches: Iterator[_T]) -> Iterator[_T]:
        """Yield batches, and count for ``data`` how long each took to come."""
        while True:
            with self.on("data"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    @contextlib.contextmanager
    def listening(self) -> Iterator["TimeSpent"]:
        """Count what JAX traces and compiles in this thread during a block."""
        _listen()
        before = _listener.set(self)
        try:
            yield self
        finally:
            _listener.reset(before)

    def count_event(self, part: str, seconds: float) -> None:
        """Count the last seconds for a part, without the events that ended in them."""
        now = self._count()
        inside = 0.0
        while self._events and self._events[-1][0] > now - seconds:
            inside += self._events.pop()[1]
        self._events.append((now - seconds / 2, seconds))
        # JAX has another clock, so its seconds may be more than were counted.
        own = min(max(seconds - inside, 0.0), self._seconds[self._part])
        self._seconds[self._part] -= own
        self._seconds[part] += own

    def _count(self) -> float:
        now = self._clock()
        self._seconds[self._part] += now - self._since
        self._since = now
        return now


_listener: contextvars.ContextVar[TimeSpent | None] = contextvars.ContextVar(
    "listener", default=None
)


@functools.cache
def _listen() -> None:
    """Register once: JAX 0.7 has no public way to unregister."""

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        spent, part = _listener.get(), _PART_OF_EVENT.get(event)
        if spent is not None and part is not None:
            spent.count_event(part, duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
