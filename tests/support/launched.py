"""A script run by several processes on this machine, connected over loopback."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    output: str
    seconds: float  # from the start of all


def launch(script: str, count: int, *arguments: str, devices: int = 1) -> list:
    """Start ``count`` processes of a script; return them.

    More than one are connected by variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices}",
    }
    peers = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-u", "-c", script, *arguments],
            env=environment
            | (peers | {"JAX_PROCESS_ID": str(rank)} if count > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for rank in range(count)
    ]


def ends(processes: list) -> list[Ended]:
    """Wait for all processes; return how each ended."""
    start, ended = time.monotonic(), []
    for process in processes:
        output, _ = process.communicate(timeout=300)
        ended.append(Ended(process.returncode, output, time.monotonic() - start))
    return ended
