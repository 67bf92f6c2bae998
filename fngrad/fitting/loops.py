"""The ways to drive a step: from Python, or by a loop inside the program.

All run the same body, which makes one step and writes its metrics into a row of a
fixed buffer. The Python loop dispatches the body once a step. The scan loop is a
``fori_loop`` of traced length around it, so one program serves chunks of every
length. How a run is cut into chunks never changes its bits.

Dense models end with the same bits whichever loop ran. XLA on CPU may round a
convolution inside a loop differently, by one unit in the last place.
"""

import functools
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.fitting.feeds import Feed, batch_at
from fngrad.training import Step, TrainState, snapshot
from fngrad.types import Batch

ROWS = 1024  # steps whose metrics the buffer holds, and the longest chunk
SLOW_STEP = 2e-3  # seconds; above it a loop inside the program has nothing to win
PROBE_ROUNDS = 5
PROBE_ROUND = 0.02  # seconds of one loop in one round


class Carry(NamedTuple):
    """What goes from step to step; the loops donate it."""

    state: TrainState
    rows: jax.Array  # (ROWS, metrics), sorted by name; step t writes row t % ROWS


# (carry, steps) -> (carry, steps made): fewer when the data end.
Advance: TypeAlias = Callable[[Carry, int], tuple[Carry, int]]


class Choice(NamedTuple):
    """Which loop runs, and why."""

    loop: Literal["python", "scan"]
    reason: str
    step_seconds: float | None = None  # of the chosen loop, when it was timed
    compile_seconds: float | None = None  # of all that was compiled to choose


def begin(state: TrainState, metrics: dict[str, Any]) -> Carry:
    """Return the first carry: a copy of the state, and an empty buffer."""
    wide = any(metric.dtype == jnp.float64 for metric in metrics.values())
    dtype = jnp.float64 if wide else jnp.float32
    return Carry(snapshot(state), jnp.zeros((ROWS, len(metrics)), dtype))


def make_loop(name: Literal["python", "scan"], step: Step, feed: Feed) -> Advance:
    """Return the loop that drives ``step`` over a dataset, function or iterable."""
    if feed.is_iterable:
        return functools.partial(_feed, step, feed.batches)
    drive = {"python": _dispatch, "scan": _scan}[name]
    return functools.partial(drive, step, feed.static, feed.argument)


def choose(
    step: Step,
    feed: Feed,
    carry: Carry,
    remaining: int,
    interrupted: threading.Event | None = None,
) -> Choice:
    """Time both loops on copies of the carry and choose the faster.

    The scan loop is compiled only where it can pay: a Python step is fast, and the
    rest of the run takes longer than compiling.
    """
    if feed.is_iterable:
        return Choice("python", "batches come from the host")
    loops = {name: make_loop(name, step, feed) for name in ("python", "scan")}
    copies = {name: snapshot(carry) for name in loops}

    def timed(name: str, length: int) -> float:
        start = time.perf_counter()
        carry, _ = loops[name](copies[name], length)
        copies[name] = jax.block_until_ready(carry)
        return (time.perf_counter() - start) / length

    compiling = timed("python", 1)
    if interrupted is not None and interrupted.is_set():
        return Choice("python", "interrupted before the loops were timed")
    seconds = min(timed("python", 4) for _ in range(PROBE_ROUNDS))
    if seconds > SLOW_STEP:
        reason = f"a step takes {seconds * 1e3:.1f} ms, which hides its dispatch"
        return Choice("python", reason, seconds, compiling)
    if seconds * remaining < compiling:
        reason = f"{remaining} steps are too few to pay for compiling another loop"
        return Choice("python", reason, seconds, compiling)
    compiling += timed("scan", 1)
    length = max(4, min(int(PROBE_ROUND / seconds), ROWS))
    rounds = [{n: timed(n, length) for n in loops} for _ in range(PROBE_ROUNDS)]
    medians = {n: statistics.median(r[n] for r in rounds) for n in loops}
    reason = ", ".join(f"{n} {t * 1e6:.0f} us a step" for n, t in medians.items())
    faster = "scan" if medians["scan"] < medians["python"] else "python"
    return Choice(faster, reason, medians[faster], compiling)


def _dispatch(
    step: Step, static: Any, argument: Any, carry: Carry, length: int
) -> tuple[Carry, int]:
    for _ in range(length):
        carry = _one(step, static, argument, carry)
    return carry, length


def _scan(
    step: Step, static: Any, argument: Any, carry: Carry, length: int
) -> tuple[Carry, int]:
    return _many(step, static, argument, carry, np.int32(length)), length


def _feed(
    step: Step, batches: Iterator[Batch], carry: Carry, length: int
) -> tuple[Carry, int]:
    made = 0
    for batch in itertools.islice(batches, length):
        carry = _fed(step, carry, batch)
        made += 1
    return carry, made


def _record(step: Step, carry: Carry, batch: Batch) -> Carry:
    row = carry.state.step % ROWS
    state, metrics = step(carry.state, batch)
    values = [jnp.asarray(metrics[name], carry.rows.dtype) for name in sorted(metrics)]
    return Carry(state, carry.rows.at[row].set(jnp.stack(values)))


def _body(step: Step, static: Any, argument: Any, carry: Carry) -> Carry:
    return _record(step, carry, batch_at(static, argument, carry.state.step))


# Module-level jits with a static step: another fit of the same step compiles nothing.
_one = jax.jit(_body, static_argnums=(0, 1), donate_argnums=3)
_fed = jax.jit(_record, static_argnums=0, donate_argnums=1)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _many(
    step: Step, static: Any, argument: Any, carry: Carry, length: jax.Array
) -> Carry:
    return jax.lax.fori_loop(
        0, length, lambda _, carry: _body(step, static, argument, carry), carry
    )
