"""Callbacks for `fngrad.fit`: a time limit, a trace, spikes, histograms, images.

fg.fit(..., callbacks=[fg.callbacks.max_minutes(50), fg.callbacks.spike()])
"""

import math
import time
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import fngrad.numerics as numerics
from fngrad.fitting.hooks import STOP, Hook, RunView, Stop
from fngrad.fitting.inputs import check_option
from fngrad.fitting.media import histograms, images
from fngrad.fitting.profiling import profile
from fngrad.fitting.spikes import spikes
from fngrad.programs.caller_warnings import warn

__all__ = ["histograms", "images", "max_minutes", "profile", "spike"]


def __dir__() -> list[str]:
    return sorted(__all__)


def max_minutes(minutes: float, *, clock: Callable[[], float] = time.monotonic) -> Hook:
    """End a run cleanly when it has taken so many minutes, within about a second.

    The run ends as by ``fngrad.STOP``: with checkpoints the last state is saved, and
    the same call again trains on, for as many minutes.

    Args:
        minutes: > 0, counted from the first step of the call, compiling included.
        clock: returns seconds.

    Raises:
        ValueError: if ``minutes`` is not a finite number > 0.

    Example:
        >>> import fngrad as fg
        >>> fg.callbacks.max_minutes(50)
        max_minutes(50)
    """
    if not (isinstance(minutes, Real) and 0 < minutes < math.inf):
        raise ValueError(f"need minutes as a finite number > 0, got {minutes!r}")
    began = [math.inf]

    def begin(run: RunView) -> None:
        began[0] = clock()

    def after(now: int) -> Stop | None:
        return STOP if clock() - began[0] >= 60 * minutes else None

    return Hook(f"max_minutes({minutes})", begin=begin, after=after)


def spike(
    factor: float = 10.0,
    *,
    window: int = 50,
    metrics: Sequence[str] | None = None,
    action: Literal["warn", "stop"] = "warn",
) -> Hook:
    r"""Warn, or end the run, when the loss or the gradient norm jumps.

    A value $v$ is a spike if $v > m + \max(\texttt{factor} \cdot s, |m|)$, where $m$ is
    the median of the ``window`` values before and $s$ the median of their distances
    from $m$. Every step is examined, after each chunk of steps.

    Args:
        factor: >= 0; how far above the median, in units of $s$.
        window: how many steps, >= 1; the first ``window`` steps have no spikes.
        metrics: of the step; by default ``loss`` and ``grad_norm``, if it has them.
        action: ``warn`` warns of a spike unless there was one in the ``window`` steps
            before it; ``stop`` ends the run as ``fngrad.STOP`` does, within one chunk.

    Raises:
        ValueError: if an argument is out of range; when the run begins, if the step has
            no such metric.

    Example:
        >>> import fngrad as fg
        >>> fg.callbacks.spike(action="stop")
        spike(factor=10.0, window=50, action='stop')
    """
    check_option("action", action, ("warn", "stop"))
    window = numerics.check_count("window", window, 1)
    if not (isinstance(factor, Real) and 0 <= factor < math.inf):
        raise ValueError(f"need factor as a finite number >= 0, got {factor!r}")
    if isinstance(metrics, str):
        metrics = [metrics]
    watch = _Watch(float(factor), window, metrics, action)
    name = f"spike({factor=}, {window=}, {action=})"
    return Hook.of(name, watch)


class _Watch:
    def __init__(self, factor: float, window: int, metrics: Any, action: str):
        self._factor, self._window, self._asked = factor, window, metrics
        self._stops = action == "stop"
        self._run: RunView | None = None
        self._names: list[str] = []
        self._seen = 0  # the last step that was examined
        self._warned: dict[str, int] = {}  # at which step, by metric

    def check(self, run: RunView) -> None:
        missing = [name for name in self._asked or () if name not in run.metrics]
        if missing or not self._watched(run):
            raise ValueError(
                f"need metrics of the step for spike, among {sorted(run.metrics)}, got "
                f"metrics={self._asked!r}"
            )

    def _watched(self, run: RunView) -> list[str]:
        found = [name for name in ("loss", "grad_norm") if name in run.metrics]
        return list(self._asked or found)

    def begin(self, run: RunView) -> None:
        self._names = self._watched(run)
        self._run, self._seen, self._warned = run, run.first, {}

    def after(self, now: int) -> Stop | None:
        if self._run is None:
            return None
        new, self._seen = max(now - self._seen, 0), now
        found = [self._first_spike(name, new) for name in self._names]
        return STOP if self._stops and any(found) else None

    def _first_spike(self, name: str, new: int) -> bool:
        """Warn of the first spike among the new values; return whether there is one."""
        assert self._run is not None
        steps, values = self._run.history.tail(name, self._window + new)
        at = np.flatnonzero(spikes(values, new, self._window, self._factor))
        if not at.size:
            return False
        at += max(len(values) - new, 0)
        index, step, last = at[0], int(steps[at[0]]), int(steps[at[-1]])
        before = self._warned.get(name)
        self._warned[name] = last
        if before is None or not 0 <= step - before <= self._window:
            median = np.median(values[index - self._window : index])
            warn(
                f"{name} is {values[index]:.4g} at step {step}, far above {median:.4g},"
                f" its median over the {self._window} steps before"
            )
        return True


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
