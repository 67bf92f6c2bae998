"""Writing a step by several processes, into one folder on a file system they share.

`begin` is called where all processes are at the same point: the first one locks the
folder and creates the hidden one of the step, whose name all are told. `finish` then
communicates by files alone, so that it can run in a thread beside the computation: a
device computes for all processes in one order, which threads would disturb. Files need
no service of JAX's whose functions are not public, and tell of a process that is gone.
"""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.shard_files as shard_files
import fngrad.checkpoint.step_folders as step_folders
from fngrad.checkpoint.agreement import decided, raise_together
from fngrad.checkpoint.device_transfer import HostTree
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.writing import explained, is_being_written, locked
from fngrad.distributed import Processes

SECONDS = 600.0  # by default, for the slowest process to write its shards
_PATIENCE = 60.0  # seconds until a new folder is seen, on a network file system
_SECONDS_BETWEEN_LOOKS = 0.05


class Begun(NamedTuple):
    """A step that all processes can write to."""

    mine: Processes
    folder: Path
    name: str  # of the step's folder
    held: contextlib.ExitStack  # the file; in the first process the folder's lock too
    seen: set[int]  # processes that can be seen to be alive

    @property
    def hidden(self) -> Path:
        """Where it is written."""
        return step_folders.hidden_path(self.folder, self.name)


def begin(mine: Processes, folder: Path, step: int) -> Begun:
    """Create the folder of a step; all processes call this.

    Raises:
        CheckpointError: if the first process cannot, or another one does not see it.
    """
    held = contextlib.ExitStack()

    def create() -> str:
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(locked(folder))
                step_folders.sweep(folder)
                name = step_folders.new_name(folder, step)
                hidden = stack.enter_context(step_folders.hidden(folder, name))
                shard_files.prepare(hidden, mine.count)
                held.push(stack.pop_all())
                return name
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(explained(folder, step, error)) from error

    name = decided(mine, create)
    hidden, problem = step_folders.hidden_path(folder, name), None
    with held:
        try:
            held.enter_context(shard_files.claimed(hidden, mine.rank, _PATIENCE))
        except OSError as error:
            problem = CheckpointError(
                "need a folder of checkpoints on a file system that all processes "
                f"share, got {str(folder)!r}: {error}"
            )
        raise_together(mine, problem)
        others = range(1, mine.count) if mine.is_first else ()
        seen = shard_files.alive(hidden, others)
        mine.any(False)  # none lets go of its file before it was seen
        return Begun(mine, folder, name, held.pop_all(), seen)


def finish(
    begun: Begun,
    step: int,
    host: HostTree,
    metrics: dict[str, Any],
    notes: Any,
    best: tuple[str, str],
    seconds: float = SECONDS,
) -> Path:
    """Write the shards of this process; the first publishes those of all.

    Args:
        begun: from `begin`.
        step: its number.
        host: what this process holds.
        metrics: in JSON's types.
        notes: in JSON's types.
        best: as `fngrad.checkpoint.manifest.write` takes it.
        seconds: how long the first process waits for the others when it has written its
            own shards.

    Raises:
        CheckpointError: in the first process, if a process fails or has not finished in
            time: it is named, and nothing of the step stays.
        Exception: in another process, what its own write raises.
    """
    mine, hidden = begun.mine, begun.hidden
    if not mine.is_first:
        _write_own(begun, host)
        _wait_for_first(begun, seconds)
        return begun.folder / begun.name
    try:
        with begun.held:
            shard_files.write(hidden, 0, host)
            shard_files.wait_for_all(hidden, mine.count, begun.seen, seconds)
            sharded = shard_files.collect(hidden, mine.count, host)
            manifest.write(hidden, step, host, metrics, notes, best, sharded)
            manifest.check_sizes(hidden, manifest.read(hidden))
            return step_folders.commit(hidden, begun.name)
    except Exception as error:
        raise CheckpointError(explained(begun.folder, step, error)) from error


def write_together(
    mine: Processes, folder: Path, step: int, host: HostTree, *rest: Any
) -> Path:
    """Write a step by `begin` and `finish`; all processes call this.

    Args:
        mine: the processes.
        folder: of steps.
        step: its number.
        host: what this process holds.
        rest: further arguments of `finish`.

    Raises:
        CheckpointError: in all processes, if one fails; the causes are named.
    """
    begun, failure = begin(mine, folder, step), None
    try:
        finish(begun, step, host, *rest)
    except Exception as error:
        failure = error
    raise_together(mine, failure)
    return folder / begun.name


def _write_own(begun: Begun, host: HostTree) -> None:
    """Write the shards of a process that is not the first."""
    rank = begun.mine.rank
    with begun.held:
        try:
            shard_files.write(begun.hidden, rank, host)
        except BaseException as error:
            if not begun.hidden.exists():
                return  # the first process gave up, and tells why
            shard_files.mark_failed(begun.hidden, rank, error)
            raise


def _wait_for_first(begun: Begun, seconds: float) -> None:
    """Wait until the first process has published a step, given it up, or ended."""
    deadline = time.monotonic() + seconds
    while begun.hidden.exists() and time.monotonic() < deadline:
        if not is_being_written(begun.folder):
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)
