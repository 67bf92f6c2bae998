"""The loops that drive a step, and how ``loop="auto"`` decides between them.

All run the same body, which makes one step and writes its metrics into a row of a
fixed buffer. The Python loop dispatches the body once per step. The loop called
``"scan"`` is a ``jax.lax.fori_loop`` of traced length around it, so one program serves
chunks of every length; a ``jax.lax.scan`` has a static length and would compile for
each. How a run is cut into chunks never changes its bits.

Dense models end with the same bits in both loops; their recorded norms may differ by
one unit in the last place with the newest XLA. On CPU a convolution inside a loop may
be rounded differently, by as much.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import fngrad.tree as tree
from fngrad.fitting.coordination import Coordination
from fngrad.fitting.dataset_reader import batch_at
from fngrad.fitting.inputs import Feed
from fngrad.fitting.interrupts import Interruption
from fngrad.logging.compilations import Compilations, calls_again
from fngrad.programs.compiled_memory import Memory, memory_of
from fngrad.sharding.constraints import split
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.training import Step, TrainState, snapshot
from fngrad.types import Batch

ROWS = 1024  # steps whose metrics the buffer holds, and the longest chunk
SLOW_STEP = 10e-3  # seconds; a slower step hides its dispatch
PROBE_ROUNDS = 5
PROBE_ROUND = 0.02  # seconds of one loop in one round
PROBE_STEPS = 4  # of a round that times the Python loop alone
AHEAD = 4  # batches that all processes have before they make the next steps
PROBE_SHARE = 0.1  # of the run, which the choice between the loops may take


class Carry(NamedTuple):
    """The carry of the loops, which donate it."""

    state: TrainState
    rows: dict[str, jax.Array]  # kind -> (ROWS, metrics), by name; step t: row t % ROWS


# (carry, steps) -> (carry, steps made); fewer are made where the data end.
Advance: TypeAlias = Callable[[Carry, int], tuple[Carry, int]]


# The sharding of each leaf of a carry; None if no leaf is spread over a mesh.
Placement: TypeAlias = tuple[jax.sharding.Sharding, ...] | None


class Choice(NamedTuple):
    """The loop that runs, and why."""

    loop: Literal["python", "scan"]
    reason: str
    step_seconds: float | None = None  # of the chosen loop, when it was timed


def begin(state: TrainState, metrics: dict[str, Any], data: Any = ()) -> Carry:
    """Return the first carry: a state, which may be donated, and empty buffers.

    Args:
        state: where the run begins.
        metrics: the shapes and dtypes of the step's metrics.
        data: arrays that the step reads; the carry is placed on their mesh.
    """
    rows = {}
    for kind, names in _by_kind(metrics).items():
        is_long = any(metrics[name].dtype.itemsize == 8 for name in names)
        dtype = f"{kind}64" if is_long else f"{kind}32"
        # From the host, which compiles nothing; without x64 it is of 32 bits.
        blank = np.zeros((ROWS, len(names)), jax.dtypes.canonicalize_dtype(dtype))
        rows[kind] = jax.device_put(blank, may_alias=False)
    return _placed(Carry(state, rows), data)


def _placed(carry: Carry, data: Any) -> Carry:
    """Replicate what is on one device over the mesh, if any leaf is spread over one.

    A step would return it replicated, and the next call would compile again.
    """
    leaves = jax.tree.leaves((carry, data))
    placements = [getattr(leaf, "sharding", None) for leaf in leaves]
    meshes = [x.mesh for x in placements if isinstance(x, NamedSharding)]
    if not meshes:
        return carry
    replicated = NamedSharding(meshes[0], PartitionSpec())
    return jax.tree.map(
        lambda x: (
            x
            if isinstance(x.sharding, NamedSharding)
            else jax.device_put(x, replicated)
        ),
        carry,
    )


def read_rows(
    carry: Carry, metrics: dict[str, Any], steps: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the metrics of these steps by name; waits for the device.

    Args:
        carry: as the loop returned it.
        metrics: the shapes and dtypes of the step's metrics.
        steps: which steps, counted from 0, among the last ROWS.
    """
    rows = {kind: np.asarray(block)[steps % ROWS] for kind, block in carry.rows.items()}
    return {
        name: rows[kind][:, column]
        for kind, names in _by_kind(metrics).items()
        for column, name in enumerate(names)
    }


def placement_of(carry: Carry) -> Placement:
    """Return the shardings of a carry's leaves, if any is spread over a mesh."""
    shardings = tuple(leaf.sharding for leaf in jax.tree.leaves(carry))
    is_spread = any(isinstance(x, NamedSharding) for x in shardings)
    return shardings if is_spread else None


def placed_like(state: TrainState, like: TrainState) -> TrainState:
    """Return a state where another is, if that is spread over a mesh."""
    if placement_of(Carry(like, {})) is None:
        return state
    return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), state, like)


def make_loop(
    name: Literal["python", "scan"],
    step: Step,
    feed: Feed,
    placement: Placement = None,
    peers: Coordination | None = None,
) -> Advance:
    """Return the loop that drives ``step`` over the data.

    Args:
        name: ``"scan"`` means the ``fori_loop`` inside the program.
        step: what it drives.
        feed: the data; if they come from the host there is one loop, whatever the name.
        placement: of the carry.
        peers: the other processes, which must have a batch before a step begins.
    """
    programs, argument = _programs(step, feed.static, placement), feed.argument
    one, many, fed = programs[:3]
    queued = jax.block_until_ready if _deadlocks(placement) else lambda carry: carry
    ahead, least = 1, None
    if peers is not None and not peers.is_alone:
        ahead, least = AHEAD, peers.least
        one, many, fed = map(peers.compiled_by_all, (one, many, fed))

    def dispatch(carry: Carry, length: int) -> tuple[Carry, int]:
        for _ in range(length):
            carry = queued(one(argument, carry))
        return carry, length

    def scan(carry: Carry, length: int) -> tuple[Carry, int]:
        if calls_again():  # inside a loop JAX could not name the operation
            return dispatch(carry, length)
        return many(argument, carry, np.int32(length)), length

    def consume(carry: Carry, length: int) -> tuple[Carry, int]:
        made = 0
        while made < length:
            asked = min(ahead, length - made)
            batches = feed.take(asked, least)
            for batch in batches:
                carry = queued(fed(carry, feed.finished(batch)))
            made += len(batches)
            if len(batches) < asked:
                break
        return carry, made

    return consume if feed.comes_from_host else {"python": dispatch, "scan": scan}[name]


def memory(
    name: Literal["python", "scan"],
    step: Step,
    feed: Feed,
    carry: Carry,
) -> Memory | None:
    """Return what the program of a loop takes on each device; compile it, run nothing.

    It is None if the backend does not report it.

    Args:
        name: of the loop, as for `make_loop`; a call of it does not compile again.
        step: what it drives.
        feed: the data.
        carry: where the run begins.
    """
    programs, argument = (
        _programs(step, feed.static, placement_of(carry)),
        feed.argument,
    )
    if feed.comes_from_host:
        lowered = programs.fed.lower(carry, feed.arrays)
    elif name == "scan":
        lowered = programs.many.lower(argument, carry, np.int32(1))
    else:
        lowered = programs.one.lower(argument, carry)
    return memory_of(lowered.compile())


def _deadlocks(placement: Placement) -> bool:
    """Return whether steps must not be queued: on several devices of one CPU.

    XLA runs the programs of all its devices on the threads of one pool. Those of later
    steps can take all threads, and then the collectives of an earlier one never meet.
    """
    devices = set().union(*(x.device_set for x in placement or ()))
    return len(devices) > 1 and all(device.platform == "cpu" for device in devices)


def choose(
    step: Step,
    feed: Feed,
    carry: Carry,
    remaining: int,
    interrupted: Interruption | None = None,
    peers: Coordination | None = None,
) -> Choice:
    """Time both loops on copies of the carry and choose the faster: ``loop="auto"``.

    The loop inside the program is compiled only if that can pay: if a step from Python
    takes less than `SLOW_STEP`, and compiling it, which takes about as long as the
    step's own program took, and timing both take less than `PROBE_SHARE` of the run.

    Args:
        step: what the loops drive.
        feed: the data.
        carry: where the run begins.
        remaining: how many steps it has.
        interrupted: ends the timing once it is set.
        peers: the other processes; the clock of the first decides.
    """
    if feed.comes_from_host:
        return Choice("python", "batches come from the host")
    few = 2 + PROBE_ROUNDS * PROBE_STEPS
    if few > PROBE_SHARE * remaining:
        return Choice("python", f"{remaining} steps are too few to time two loops")
    placed = placement_of(carry)
    told, any_is = (peers.agree, peers.any) if peers else (float, bool)
    loops = {n: make_loop(n, step, feed, placed, peers) for n in ("python", "scan")}
    copies = {name: snapshot(carry) for name in loops}

    def timed(name: str, length: int) -> float:
        start = time.perf_counter()
        copies[name] = jax.block_until_ready(loops[name](copies[name], length)[0])
        return told((time.perf_counter() - start) / length)

    def is_interrupted() -> bool:
        return any_is(interrupted is not None and interrupted.is_set())

    compiling = timed("python", 1)
    if is_interrupted():
        return Choice("python", "interrupted before the loops were timed")
    seconds = timed("python", 1)

    def pays() -> bool:
        return _probe_seconds(compiling, seconds) < PROBE_SHARE * seconds * remaining

    if seconds < SLOW_STEP and pays():
        seconds = min(timed("python", PROBE_STEPS) for _ in range(PROBE_ROUNDS))
    if seconds > SLOW_STEP:
        reason = f"a step takes {seconds * 1e3:.1f} ms, which hides its dispatch"
        return Choice("python", reason, seconds)
    if not pays():
        reason = f"{remaining} steps are too few to pay for compiling another loop"
        return Choice("python", reason, seconds)
    timed("scan", 1)  # compiles
    length = max(PROBE_STEPS, min(int(PROBE_ROUND / seconds), ROWS))
    if is_interrupted():
        return Choice("python", "interrupted before the loops were timed")
    rounds = [{n: timed(n, length) for n in loops}]
    while len(rounds) < PROBE_ROUNDS and rounds[0]["scan"] < 2 * rounds[0]["python"]:
        rounds.append({n: timed(n, length) for n in loops})
    medians = {n: float(np.median([r[n] for r in rounds])) for n in loops}
    reason = ", ".join(f"{n} {t * 1e6:.0f} us per step" for n, t in medians.items())
    faster = "scan" if medians["scan"] < medians["python"] else "python"
    return Choice(faster, reason, medians[faster])


def _probe_seconds(compiling: float, seconds: float) -> float:
    """Return about how long it takes to compile another loop and to time both.

    Args:
        compiling: seconds in which the step's own program was compiled.
        seconds: of a step.
    """
    one_round = max(PROBE_ROUND, PROBE_STEPS * seconds)
    alone = (3 + PROBE_ROUNDS * PROBE_STEPS) * seconds  # each loop's first step too
    return compiling + alone + 2 * PROBE_ROUNDS * one_round


def _record(step: Step, carry: Carry, batch: Batch) -> Carry:
    row = carry.state.step % ROWS
    # Barriers keep XLA from fusing the step with the loop, which changes its rounding.
    state, metrics = _barrier(step(*_barrier((carry.state, batch))))
    rows = {}
    for kind, names in _by_kind(metrics).items():
        block = carry.rows[kind]
        values = [jnp.asarray(metrics[name], block.dtype) for name in names]
        rows[kind] = block.at[row].set(jnp.stack(values))
    return Carry(state, rows)


def _barrier(a: Any) -> Any:
    """Return a tree behind an optimization barrier, except for its keys.

    Under ``jax_debug_key_reuse`` a barrier counts as a use of a key.
    """
    leaves, structure = jax.tree.flatten(a)
    is_key = [tree.is_key(x) for x in leaves]
    values = [x for x, skips in zip(leaves, is_key, strict=True) if not skips]
    passed = iter(jax.lax.optimization_barrier(values))
    pairs = zip(leaves, is_key, strict=True)
    return structure.unflatten([x if skips else next(passed) for x, skips in pairs])


def _by_kind(metrics: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of the metrics by the kind of their buffer."""
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
    """Return the counter of a run's compilations, reset for this call."""
    compilations = _programs(step, feed.static, placement).compilations
    compilations.begin_run()
    return compilations


class _Programs(NamedTuple):
    one: Any  # (data, carry) -> carry, see `Compilations.program`
    many: Any  # (data, carry, steps) -> carry
    fed: Any  # (carry, batch) -> carry
    compilations: Compilations


@functools.lru_cache(maxsize=8)
def _programs(step: Step, static: Any, placement: Placement) -> _Programs:
    """Return the jitted loops of a step over data of one structure.

    The cache makes another fit of the same step compile nothing. Its bound frees older
    steps and maps of data, with the arrays that they close over.
    """

    def placed(carry: Carry) -> Carry:
        # Otherwise XLA may return a leaf elsewhere, and the next call compiles again.
        if placement is None:
            return carry
        places = jax.tree.structure(carry).unflatten(placement)
        return jax.lax.with_sharding_constraint(carry, places)

    def one(argument: Any, carry: Carry) -> Carry:
        batch = batch_at(static, argument, carry.state.step)
        return placed(_record(step, carry, split(batch, auto_mesh_of(carry))))

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
