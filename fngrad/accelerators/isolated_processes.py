"""A process of its own for what may crash or hang, and how it ended."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_SHOWN = 12  # last lines of what a process that failed wrote


class Ended(NamedTuple):
    """How a process ended."""

    problem: str  # in words; empty if its exit status is 0
    output: str  # the last lines that it wrote


def run_isolated(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    time_limit: float,
) -> Ended:
    """Run a command to its end, or stop it at the time limit.

    Args:
        command: the program and its arguments.
        folder: where its output goes, to ``output.txt``.
        environment: variables besides those of this process.
        time_limit: seconds.

    Returns:
        How it ended: well, with an exit status, by a signal, or at the limit.
    """
    path = folder / "output.txt"
    with path.open("wb") as output:
        try:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                timeout=time_limit,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return Ended(problem_of(status, time_limit), "\n".join(lines[-_SHOWN:]))


def problem_of(status: int | None, time_limit: float) -> str:
    """Return what an exit status means; nothing if the process ended well.

    Args:
        status: of a process; negative is a signal's number, None a process that was
            stopped at the limit.
        time_limit: seconds.

    Example:
        >>> from fngrad.accelerators.isolated_processes import problem_of
        >>> print(problem_of(-11, 60.0))
        it crashed: signal SIGSEGV
    """
    if status is None:
        return f"it was stopped after {time_limit:g} seconds without an answer"
    if status == 0:
        return ""
    if status > 0:
        return f"it failed: exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    if name == "SIGKILL":
        return "it was killed: signal SIGKILL, as when the host runs out of memory"
    return f"it crashed: signal {name}"
