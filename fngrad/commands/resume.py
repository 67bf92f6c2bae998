"""`fngrad resume`: the recorded command of a run, run again."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import fngrad.commands.run_records as run_records
from fngrad.commands.run_records import RunRecord
from fngrad.logging.run_names import RESUMED

_NOT_COMMANDS = ("ipykernel_launcher", "pytest", "fngrad")


class Command(NamedTuple):
    """How to run a program again."""

    arguments: list[str]
    folder: Path  # in which it was started


def resume(run: Path, /, *, dry: bool = False) -> int:
    """Run the command that made a run again, in its folder, so that it resumes.

    `fngrad.fit` resumes from the newest checkpoint if it is given the same run folder;
    `fngrad.logging.new_run` returns that of this run. The exit status is that of the
    command; 1 if it cannot be resumed, 0 if the run is complete. One that a callback
    ended, such as `fngrad.callbacks.max_minutes`, goes on.

    Args:
        run: its folder.
        dry: only print the command.
    """
    record = run_records.read_run(run)
    command = command_of(record)
    if dry:
        print(f"cd {shlex.quote(str(command.folder))}")
        print(f"{RESUMED}={shlex.quote(str(record.path.resolve()))} \\")
        print(f"  {shlex.join(command.arguments)}")
        return 0
    if record.is_done:
        print(f"nothing to do: {record.path} is complete at step {record.step}")
        return 0
    return _run(command, {RESUMED: str(record.path.resolve())})


def command_of(record: RunRecord) -> Command:
    """Return how to run the program of a run again.

    Raises:
        ValueError: if the run is still running, has no checkpoint, or its manifest has
            no command that can be run again.
    """
    if record.status == "running":
        raise ValueError(f"need a run that has ended, got {record.path}, still running")
    if not record.steps:
        raise ValueError(
            f"need a run with a checkpoint, got {record.path} without one: save_every "
            "or save_minutes of fngrad.fit saves them"
        )
    command = record.manifest.get("command")
    arguments = shlex.split(command) if isinstance(command, str) else []
    names = [Path(argument).name for argument in arguments[:3]]
    if not arguments or any(name in _NOT_COMMANDS for name in names):
        raise ValueError(
            f"need a run that a command started, got {record.path} with the command "
            f"{command!r}: run its notebook or its program again"
        )
    folder = Path(record.manifest.get("cwd") or ".")
    if not folder.is_dir():
        raise ValueError(
            f"need the folder in which the command was started, got {str(folder)!r}, "
            f"which does not exist; the command was {command}"
        )
    python = record.manifest.get("executable")
    if python and Path(python).is_file():
        arguments[0] = python
    return Command(arguments, folder)


def _run(command: Command, variables: dict[str, str]) -> int:
    """Run the command with more environment variables; return its exit status.

    Signals reach it directly: it replaces this process, except on Windows.
    """
    environment: dict[str, Any] = {**os.environ, **variables}
    sys.stdout.flush()
    if sys.platform == "win32":
        return subprocess.call(command.arguments, cwd=command.folder, env=environment)
    os.chdir(command.folder)
    return os.execvpe(command.arguments[0], command.arguments, environment)
