"""Run a program in several processes of this machine, which JAX connects.

Command:  python -m experiments.launch 2 4 -m experiments.char_transformer
          (processes, virtual CPU devices of each, and what Python runs)

The program calls `fngrad.distributed.initialize` first. Ctrl-C reaches all processes,
SIGTERM is passed on to them. If one fails it is printed how each ended, and the status
is that of the failed one with the lowest number. On Slurm, Cloud TPU and Kubernetes
nothing like this is needed: JAX finds the processes.
"""

import os
import signal
import socket
import subprocess
import sys


def main(count: int, devices: int, *command: str) -> int:
    """Start the processes and wait for them; return the exit status."""
    started = [
        subprocess.Popen([sys.executable, *command], env=os.environ | variables)
        for variables in connecting(count, devices)
    ]
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sent it to all
    signal.signal(signal.SIGTERM, lambda *_: [x.terminate() for x in started] and None)
    ended = [process.wait() for process in started]
    for rank, status in enumerate(ended if any(ended) else []):
        print(f"process {rank} {told(status)}", file=sys.stderr)
    return next(
        (status if status > 0 else 128 - status for status in ended if status), 0
    )


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
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
