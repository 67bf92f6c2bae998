"""A script run by several processes on this machine, connected over loopback."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from experiments.launch import connecting

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    output: str
    seconds: float  # from the start of all


def launch(script: str, count: int, *arguments: str, devices: int = 1) -> list:
    """Start ``count`` connected processes of a script; return them.

    One alone is not connected.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    each = connecting(count, devices)
    if count == 1:
        each = [{"XLA_FLAGS": each[0]["XLA_FLAGS"]}]
    return [
        subprocess.Popen(
            [sys.executable, "-u", "-c", script, *arguments],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for variables in each
    ]


def ends(processes: list) -> list[Ended]:
    """Wait for all processes; return how each ended."""
    start, ended = time.monotonic(), []
    for process in processes:
        output, _ = process.communicate(timeout=300)
        ended.append(Ended(process.returncode, output, time.monotonic() - start))
    return ended
