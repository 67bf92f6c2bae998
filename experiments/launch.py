"""Run a program in several processes of this machine, which JAX connects.

Command:  python -m experiments.launch 2 4 -m experiments.char_transformer
          (processes, virtual CPU devices of each, and what Python runs)

The program calls `fngrad.distributed.initialize` first. Ctrl-C reaches all processes,
SIGTERM is passed on to them. Once one fails it is printed how each ends, when it ends.
What is left half a minute later, as it waits for one that never connected, gets
SIGTERM. The status is that of the first that failed. On Slurm, Cloud TPU and Kubernetes
nothing like this is needed: JAX finds the processes.
"""

import os
import signal
import socket
import subprocess
import sys
import time

PATIENCE = 30.0  # seconds from the first failure on


def main(count: int, devices: int, *command: str) -> int:
    """Start the processes and wait for them; return the exit status."""
    started = [
        subprocess.Popen([sys.executable, *command], env=os.environ | variables)
        for variables in connecting(count, devices)
    ]
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sent it to all
    signal.signal(signal.SIGTERM, lambda *_: [x.terminate() for x in started] and None)
    status = wait(dict(enumerate(started)))
    return status if status >= 0 else 128 - status


def wait(running: dict[int, subprocess.Popen]) -> int:
    """Wait for processes, by rank; return the status of the first that fails, or 0."""
    failed, deadline = 0, float("inf")
    while running:
        ended = {rank: x.poll() for rank, x in running.items()}
        for rank, status in ended.items():
            if status is None:
                continue
            del running[rank]
            if status and not failed:
                failed, deadline = status, time.monotonic() + PATIENCE
            if failed:
                print(f"process {rank} {told(status)}", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            deadline = float("inf")
            for process in running.values():
                process.terminate()
        time.sleep(0.05)
    return failed


def connecting(count: int, devices: int) -> list[dict[str, str]]:
    """Return the variables by which each process finds the others and its devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    known = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    known["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    return [known | {"JAX_PROCESS_ID": str(rank)} for rank in range(count)]


def told(status: int) -> str:
    """Return how a process ended; a status below 0 is a signal, for Python."""
    if status < 0:
        names = {int(each): each.name for each in signal.Signals}
        return f"was ended by {names.get(-status, f'signal {-status}')}"
    return f"ended with status {status}"


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
