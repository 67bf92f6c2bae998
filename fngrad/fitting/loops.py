"""The ways to drive a step: from Python, or by a loop inside the program.

All run the same body, which makes one step and writes its metrics into a row of a
fixed buffer. The Python loop dispatches the body once a step. The scan loop is a
``fori_loop`` of traced length around it, so one program serves chunks of every
length. How a run is cut into chunks never changes its bits.

Dense models end with the same bits whichever loop ran; their recorded norms may differ
by one unit in the last place with the newest XLA. On CPU a convolution inside a loop
may be rounded differently, by as much.
"""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fngrad.fitting.feeds import Feed, batch_at
from fngrad.fitting.interrupts import Interruption
from fngrad.logging.compilations import Compilations, calls_again
from fngrad.training import Step, TrainState, snapshot
from fngrad.types import Batch

ROWS = 1024  # steps whose metrics the buffer holds, and the longest chunk
SLOW_STEP = 10e-3  # seconds; above it a loop inside the program has little to win
FEW_STEPS = 50
PROBE_ROUNDS = 5
PROBE_ROUND = 0.02  # seconds of one loop in one round


class Carry(NamedTuple):
    """What goes from step to step; the loops donate it."""

    state: TrainState
    rows: dict[str, jax.Array]  # kind -> (ROWS, metrics), by name; step t: row t % ROWS


# (carry, steps) -> (carry, steps made): fewer when the data end.
Advance: TypeAlias = Callable[[Carry, int], tuple[Carry, int]]


# Of each leaf of a carry; None where none is spread over a mesh.
Placement: TypeAlias = tuple[jax.sharding.Sharding, ...] | None


class Choice(NamedTuple):
    """Which loop runs, and why."""

    loop: Literal["python", "scan"]
    reason: str
    step_seconds: float | None = None  # of the chosen loop, when it was timed


def begin(state: TrainState, metrics: dict[str, Any], data: Any = ()) -> Carry:
    """Return the first carry of a state that may be donated: it, and empty buffers.

    Args:
        state: where the run begins.
        metrics: the shapes and dtypes of the step's metrics.
        data: arrays that the step will meet; the carry goes where they are.
    """
    rows = {}
    for kind, names in _by_kind(metrics).items():
        is_long = any(metrics[name].dtype.itemsize == 8 for name in names)
        dtype = f"{kind}64" if is_long else f"{kind}32"
        rows[kind] = jnp.zeros((ROWS, len(names)), dtype)
    return _placed(Carry(state, rows), data)


def _placed(carry: Carry, data: Any) -> Carry:
    """Put what is on one device on all of a mesh, where something is spread over one.

    A step would give it back there, and the next call would compile again.
    """
    leaves = jax.tree.leaves((carry, data))
    placements = [getattr(leaf, "sharding", None) for leaf in leaves]
    meshes = [x.mesh for x in placements if isinstance(x, NamedSharding)]
    if not meshes:
        return carry
    whole = NamedSharding(meshes[0], PartitionSpec())
    return jax.tree.map(
        lambda x: (
            x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, whole)
        ),
        carry,
    )


def read_rows(
    carry: Carry, metrics: dict[str, Any], steps: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what these steps wrote, by metric; waits until they have.

    Args:
        carry: where the loop has come to.
        metrics: the shapes and dtypes of the step's metrics.
        steps: which steps, counted from 0; at most the last ROWS.
    """
    rows = {kind: np.asarray(block)[steps % ROWS] for kind, block in carry.rows.items()}
    return {
        name: rows[kind][:, column]
        for kind, names in _by_kind(metrics).items()
        for column, name in enumerate(names)
    }


def placement_of(carry: Carry) -> Placement:
    """Return where the leaves of a carry are if they are spread over a mesh."""
    places = tuple(leaf.sharding for leaf in jax.tree.leaves(carry))
    is_spread = any(isinstance(place, NamedSharding) for place in places)
    return places if is_spread else None


def make_loop(
    name: Literal["python", "scan"],
    step: Step,
    feed: Feed,
    placement: Placement = None,
) -> Advance:
    """Return the loop that drives ``step`` over a dataset, function or iterable."""
    programs, argument = _programs(step, feed.static, placement), feed.argument

    def dispatch(carry: Carry, length: int) -> tuple[Carry, int]:
        for _ in range(length):
            carry = programs.one(argument, carry)
        return carry, length

    def scan(carry: Carry, length: int) -> tuple[Carry, int]:
        if calls_again():  # within a loop JAX would not find the operation
            return dispatch(carry, length)
        return programs.many(argument, carry, np.int32(length)), length

    def consume(carry: Carry, length: int) -> tuple[Carry, int]:
        made = 0
        for batch in itertools.islice(feed.batches, length):
            carry = programs.fed(carry, batch)
            made += 1
        return carry, made

    return consume if feed.is_iterable else {"python": dispatch, "scan": scan}[name]


def choose(
    step: Step,
    feed: Feed,
    carry: Carry,
    remaining: int,
    interrupted: Interruption | None = None,
) -> Choice:
    """Time both loops on copies of the carry and choose the faster.

    The scan loop is compiled only where it can pay: a Python step is fast, and the
    rest of the run takes longer than compiling.
    """
    if feed.is_iterable:
        return Choice("python", "batches come from the host")
    if remaining < FEW_STEPS:
        return Choice("python", f"{remaining} steps are too few to time two loops")
    place = placement_of(carry)
    loops = {name: make_loop(name, step, feed, place) for name in ("python", "scan")}
    copies = {name: snapshot(carry) for name in loops}

    def timed(name: str, length: int) -> float:
        start = time.perf_counter()
        carry, _ = loops[name](copies[name], length)
        copies[name] = jax.block_until_ready(carry)
        return (time.perf_counter() - start) / length

    def gives_up() -> bool:
        return interrupted is not None and interrupted.is_set()

    compiling = timed("python", 1)
    if gives_up():
        return Choice("python", "interrupted before the loops were timed")
    seconds = timed("python", 1)
    if seconds < SLOW_STEP:
        seconds = min(timed("python", 4) for _ in range(PROBE_ROUNDS))
    if seconds > SLOW_STEP:
        reason = f"a step takes {seconds * 1e3:.1f} ms, which hides its dispatch"
        return Choice("python", reason, seconds)
    if seconds * remaining < compiling:
        reason = f"{remaining} steps are too few to pay for compiling another loop"
        return Choice("python", reason, seconds)
    timed("scan", 1)  # compiles
    length = max(4, min(int(PROBE_ROUND / seconds), ROWS))
    if gives_up():
        return Choice("python", "interrupted before the loops were timed")
    rounds = [{n: timed(n, length) for n in loops} for _ in range(PROBE_ROUNDS)]
    medians = {n: float(np.median([r[n] for r in rounds])) for n in loops}
    reason = ", ".join(f"{n} {t * 1e6:.0f} us a step" for n, t in medians.items())
    faster = "scan" if medians["scan"] < medians["python"] else "python"
    return Choice(faster, reason, medians[faster])


def _record(step: Step, carry: Carry, batch: Batch) -> Carry:
    row = carry.state.step % ROWS
    # Barriers keep XLA from rounding the step anew for what surrounds it in a loop.
    state, metrics = _barrier(step(*_barrier((carry.state, batch))))
    rows = {}
    for kind, names in _by_kind(metrics).items():
        block = carry.rows[kind]
        values = [jnp.asarray(metrics[name], block.dtype) for name in names]
        rows[kind] = block.at[row].set(jnp.stack(values))
    return Carry(state, rows)


def _barrier(a: Any) -> Any:
    """Return a tree behind an optimization barrier, but for its keys.

    Under ``jax_debug_key_reuse`` a barrier counts as a use of a key.
    """
    leaves, structure = jax.tree.flatten(a)
    is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    values = [x for x, skips in zip(leaves, is_key, strict=True) if not skips]
    passed = iter(jax.lax.optimization_barrier(values))
    pairs = zip(leaves, is_key, strict=True)
    return structure.unflatten([x if skips else next(passed) for x, skips in pairs])


def _by_kind(metrics: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of integer and of other metrics, where there are any."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(metrics):
        dtype = metrics[name].dtype
        is_unsigned = jnp.issubdtype(dtype, jnp.unsignedinteger)
        is_int = jnp.issubdtype(dtype, jnp.integer)
        kind = "uint" if is_unsigned else "int" if is_int else "float"
        kinds.setdefault(kind, []).append(name)
    return kinds


def begin_compilations(
    step: Step, feed: Feed, placement: Placement = None
) -> Compilations:
    """Return what counts the compilations of a run that begins with this call."""
    compilations = _programs(step, feed.static, placement).compilations
    compilations.begin_run()
    return compilations


class _Programs(NamedTuple):
    one: Callable[[Any, Carry], Carry]  # (data, carry) -> carry
    many: Callable[[Any, Carry, Any], Carry]  # (data, carry, steps) -> carry
    fed: Callable[[Carry, Batch], Carry]
    compilations: Compilations


@functools.lru_cache(maxsize=8)
def _programs(step: Step, static: Any, placement: Placement) -> _Programs:
    """Return the jitted loops of a step over data of one kind.

    The last few are kept. So another fit of the same step compiles nothing, and a step
    or a map of the data that is long gone, with all that it closes over, is not kept
    alive for ever.
    """

    def placed(carry: Carry) -> Carry:
        # Or XLA may give a leaf back elsewhere, for which the next call compiles anew.
        if placement is None:
            return carry
        places = jax.tree.structure(carry).unflatten(placement)
        return jax.lax.with_sharding_constraint(carry, places)

    def one(argument: Any, carry: Carry) -> Carry:
        batch = batch_at(static, argument, carry.state.step)
        return placed(_record(step, carry, batch))

    def many(argument: Any, carry: Carry, length: jax.Array) -> Carry:
        end = jax.lax.fori_loop(0, length, lambda _, c: one(argument, c), carry)
        return placed(end)

    def fed(carry: Carry, batch: Batch) -> Carry:
        return placed(_record(step, carry, batch))

    made = Compilations()
    return _Programs(
        made.program(one, "data", "carry", donates="carry"),
        made.program(many, "data", "carry", "length", donates="carry"),
        made.program(fed, "carry", "batch", donates="carry", warns=False),
        made,
    )
