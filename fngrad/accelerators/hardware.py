"""The devices and the memory of this machine."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fngrad.accelerators.chips import GIB, chip_of_kind
from fngrad.accelerators.findings import OK, WARNING, Finding
from fngrad.programs.units import size_text

_SHARE = 0.6  # of a chip's memory; JAX takes three quarters of a GPU's by default
_LITTLE = 1.0 * GIB  # of memory, in which imports and compilers soon fail
# Control groups, v2 and v1: the limit, what is used, and what of it can go, by its name
# in memory.stat.
_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


class Devices(NamedTuple):
    """The devices of the default backend."""

    platform: str  # "cpu", "gpu" or "tpu"
    kind: str  # as JAX names it
    chip: str | None  # as in `fngrad.accelerators.chips`; None if it is not there
    count: int  # of all processes
    local_count: int  # of this process
    process_count: int
    memory: int | None  # bytes that programs may use on each; None if it is not told
    in_use: int | None  # bytes on the fullest of this process


class HostMemory(NamedTuple):
    """The memory of the host, in bytes."""

    total: int  # or what a container may use
    available: int


def find_devices() -> Devices:
    """Return the devices on which this process computes."""
    first, *others = jax.local_devices()
    chip = chip_of_kind(first.device_kind)
    taken = [_memory_stats(device) for device in (first, *others)]
    limits = [stats["bytes_limit"] for stats in taken if "bytes_limit" in stats]
    used = [stats["bytes_in_use"] for stats in taken if "bytes_in_use" in stats]
    return Devices(
        platform=jax.default_backend(),
        kind=first.device_kind,
        chip=None if chip is None else chip.name,
        count=jax.device_count(),
        local_count=jax.local_device_count(),
        process_count=jax.process_count(),
        memory=min(limits, default=None),
        in_use=max(used, default=None),
    )


def _memory_stats(device: Any) -> dict[str, int]:
    """Return what a device tells about its memory: on a CPU nothing."""
    with contextlib.suppress(RuntimeError, NotImplementedError):
        return device.memory_stats() or {}
    return {}


def host_memory(root: Path = Path("/")) -> HostMemory | None:
    """Return the memory of the host, or None where Linux does not tell it.

    Args:
        root: of the file system.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {
            name: rest.split() for name, _, rest in (x.partition(":") for x in lines)
        }
        total, available = (
            1024 * int(sizes[name][0]) for name in ("MemTotal", "MemAvailable")
        )
    except (OSError, KeyError, ValueError):
        return None
    for limit_file, use_file, reclaimable in _GROUPS:
        path = root / "sys/fs/cgroup" / limit_file
        with contextlib.suppress(OSError, ValueError):  # without a limit it says "max"
            total = min(total, int(path.read_text()))
            kept = int((root / "sys/fs/cgroup" / use_file).read_text())
            lines = (path.parent / "memory.stat").read_text().splitlines()
            stat = dict(map(str.split, lines))
            available = min(available, total - kept + int(stat.get(reclaimable, 0)))
    return HostMemory(total, min(total, available))


def judge_devices(found: Devices) -> list[Finding]:
    """Return what is to be said about devices."""
    kind = found.kind
    if found.chip is not None and found.chip not in kind:
        kind += f" ({found.chip})"
    text = f"{found.count} x {kind}"
    if found.process_count > 1:
        text += f" of {found.process_count} processes, {found.local_count} of this one"
    findings = []
    if found.memory is not None:
        text += f", {size_text(found.memory)} each"
        if 2 * (found.in_use or 0) > found.memory:
            findings.append(_full(found))
        findings += _limited(found.kind, found.memory)
    findings.append(Finding(OK, "devices", text))
    if found.platform != "cpu" and found.chip is None:
        way_out = "compare the speed below with the maker's data sheet"
        text = f"the peaks of {found.kind!r} are not known here"
        findings.append(Finding(WARNING, "chip", text, way_out))
    return findings


def _full(found: Devices) -> Finding:
    used, whole = size_text(found.in_use or 0), size_text(found.memory or 0)
    text = f"{used} of {whole} of a device are in use"
    return Finding(WARNING, "memory", text, "delete arrays, or restart this process")


def _limited(kind: str, memory: int) -> Iterator[Finding]:
    chip = chip_of_kind(kind)
    if chip is not None and memory < _SHARE * chip.memory:
        text = f"programs may use {size_text(memory)} of {size_text(chip.memory)}"
        way_out = "XLA_PYTHON_CLIENT_MEM_FRACTION sets the share; a slice has no more"
        yield Finding(WARNING, "memory", text, way_out)


def judge_memory(found: HostMemory | None) -> Finding:
    """Return what is to be said about the memory of the host."""
    if found is None:
        return Finding(OK, "host memory", "not told by this system")
    text = f"{size_text(found.available)} of {size_text(found.total)} available"
    if found.available < _LITTLE:
        way_out = "end other processes; larger data stay on disk: fg.data.from_source"
        return Finding(WARNING, "host memory", text, way_out)
    return Finding(OK, "host memory", text)
