"""The width of a sweep's blocks: modes, memory, cores.

``map`` trains one lane at a time, ``vmap`` all at once, and a number is the width of
the blocks in between. On an accelerator the widest block that fits in memory is best.
On a CPU it depends on the model: a wide block spreads the overhead of each operation
over the lanes of a small model, but those of a large one do not fit in the caches. The
time to compile hardly depends on the width
(`fngrad.sweeps.running.program.BATCHED_OPTIONS`).
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import fngrad.numerics as numerics
from fngrad.programs.caller_warnings import warn
from fngrad.sweeps.running.program import Block, Lanes, compile_block
from fngrad.sweeps.running.width_timing import heaviest_loop

Mode: TypeAlias = Literal["auto", "vmap", "map"] | int

CPU_WIDTHS = (2, 64)
# Carried from step to step by the lanes of a block. With it, six perceptrons that
# carry 264 bytes to 3.6 MB took at most 9 % longer than with the best width of
# 1, 2, 4, ..., 64.
CPU_BYTES = 2**20
MEMORY_SHARE = 0.5  # of the free memory, for a block


class Choice(NamedTuple):
    """The chosen width, and the reason for it."""

    width: int  # lanes on each device
    reason: str


def check_mode(mode: Any) -> None:
    """Check that this is a mode.

    Raises:
        ValueError: if it is not.
    """
    if mode in ("auto", "vmap", "map"):
        return
    width = numerics.as_int(mode)
    if width is None or width < 1:
        raise ValueError(
            f'need mode "auto", "vmap", "map" or a number of lanes >= 1, got {mode=}'
        )


def choose(mode: Mode, lanes: Lanes, jaxpr: Any) -> Choice:
    """Choose the width of the blocks before anything is timed.

    On a CPU "auto" takes as many lanes as carry about 1 MiB from step to step, 2 to
    64 of them, but few enough that each core gets a block.
    """
    share = lanes.share
    if mode == "map":
        return Choice(1, "asked for")
    if mode == "vmap":
        return Choice(share, "asked for")
    if mode != "auto":
        return Choice(int(mode), "asked for")
    if lanes.devices[0].platform != "cpu":
        return Choice(share, "all lanes of a device at once, on an accelerator")
    share = -(-share // blocks_at_once(lanes.devices))
    loop = heaviest_loop(jaxpr)
    carried = loop.carry_bytes if loop else 0
    low, high = CPU_WIDTHS
    width = min(max(CPU_BYTES // max(carried, 1), low), high)
    return Choice(balanced(share, width), f"lanes that carry {carried} bytes each")


def balanced(count: int, width: int) -> int:
    """Return a width, at most ``width``, that leaves little padding in the blocks.

    Example:
        >>> from fngrad.sweeps.running.block_width import balanced
        >>> balanced(33, 32), balanced(512, 32)
        (17, 32)
    """
    return -(-count // -(-count // width))


def fitting_block(lanes: Lanes, width: int) -> Block:
    """Compile a block of this width, or of a smaller one that fits in memory.

    A block of one lane is returned even if it does not fit. A narrower block is
    announced by a warning, because its lanes may round differently.
    """
    block, budget = compile_block(lanes, width), memory_budget(lanes.devices)
    while block.bytes > budget and block.width > 1:
        smaller = max(1, min(block.width // 2, block.width * budget // block.bytes))
        warn(
            f"a block of {block.width} lanes needs {_gib(block.bytes)} of a device, "
            f"{_gib(budget)} may be used: continuing with {smaller} lanes"
        )
        narrow, spent = compile_block(lanes, smaller), block.compile_seconds
        block = narrow._replace(compile_seconds=spent + narrow.compile_seconds)
    return block


def blocks_at_once(devices: Sequence[Any]) -> int:
    """Return how many blocks are trained concurrently.

    Small operations keep one core busy, so on one CPU each core trains a block of its
    own. Several devices share a block instead.
    """
    is_one_cpu = len(devices) == 1 and devices[0].platform == "cpu"
    return _cores() if is_one_cpu else 1


def memory_budget(devices: Sequence[Any]) -> int:
    """Return the bytes of each device that a block may take."""
    statistics = devices[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        free = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    else:
        free = _free_host_memory() // (len(devices) * blocks_at_once(devices))
    return int(MEMORY_SHARE * free)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_host_memory() -> int:
    """Return the free bytes of the host; a container's own limit is not read."""
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        if not hasattr(os, "sysconf"):
            return 8 * 2**30
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(count: int) -> str:
    return f"{count / 2**30:.2g} GiB"
