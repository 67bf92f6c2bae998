"""A script run by several processes on this machine, connected over loopback."""

import subprocess
import time
from typing import NamedTuple

from forked import Forked

from experiments.launch import connecting


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    output: str
    seconds: float  # from the start of all


def launch(script: str, count: int, *arguments: str, devices: int = 1) -> list:
    """Start ``count`` connected processes of a script; return them.

    One alone is not connected.
    """
    each = connecting(count, devices)
    if count == 1:
        each = [{"XLA_FLAGS": each[0]["XLA_FLAGS"]}]
    return [
        Forked(
            script,
            *arguments,
            variables=variables,
            origin=min(rank, 1),
            stderr=subprocess.STDOUT,
        )
        for rank, variables in enumerate(each)
    ]


def ends(processes: list) -> list[Ended]:
    """Wait for all processes; return how each ended."""
    start, ended = time.monotonic(), []
    for process in processes:
        output, _ = process.communicate(timeout=300)
        ended.append(Ended(process.returncode, output, time.monotonic() - start))
    return ended
