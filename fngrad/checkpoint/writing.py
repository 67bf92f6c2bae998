"""Writing a step atomically."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.step_folders as step_folders
from fngrad.checkpoint.agreement import cause
from fngrad.checkpoint.device_transfer import HostTree
from fngrad.checkpoint.errors import CheckpointError, UnreadableError
from fngrad.checkpoint.reading import completed
from fngrad.files.locks import Lock, LockError, is_in_use
from fngrad.types import Mode

_LOCK = ".writing"
DEFAULT_BEST: tuple[str, Mode] = ("val/loss", "min")


def write_step(
    folder: Path,
    step: int,
    host: HostTree,
    metrics: dict[str, Any],
    notes: Any,
    best: tuple[str, str] = DEFAULT_BEST,
) -> Path:
    """Write a step atomically; return its folder.

    Leftovers of killed writers are removed first. Metrics and notes hold JSON's types;
    ``best`` is recorded for ``restore(step="best")``.

    Raises:
        CheckpointError: if the folder cannot be written (with the error, the folder,
            its free bytes and the last good step), or another process writes there.
        ImportError: if orbax-checkpoint is missing.
    """
    try:
        with locked(folder):
            step_folders.sweep(folder)
            name = step_folders.new_name(folder, step)
            with step_folders.hidden(folder, name) as temporary:
                arrays = manifest.arrays_of(host)
                array_files.write(temporary / manifest.ARRAYS, arrays)
                manifest.write(temporary, step, host, metrics, notes, best)
                # What was written must have its sizes and be read unchanged.
                manifest.check_sizes(temporary, manifest.read(temporary))
                array_files.check(temporary / manifest.ARRAYS, arrays)
                return step_folders.commit(temporary, name)
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        raise CheckpointError(explained(folder, step, error)) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder of checkpoints.

    Raises:
        CheckpointError: if another process writes there.
        OSError: if the folder cannot be written.
    """
    try:
        with Lock(folder, name=_LOCK, purpose="checkpoints"):
            yield
    except LockError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise CheckpointError(str(error)) from error


def is_being_written(folder: Path) -> bool:
    """Return whether a process holds the lock of `locked`; no without locks."""
    return is_in_use(folder, name=_LOCK)


def explained(folder: Path, step: int, error: Exception) -> str:
    """Return why a step was not written, the free space, and the last good step."""
    try:
        steps = [each.folder.step for each in completed(folder)]
        last = f"step {steps[-1]}" if steps else "none"
    except UnreadableError as unreadable:
        last = f"unknown ({unreadable})"
    try:
        free = f"{shutil.disk_usage(folder).free} bytes are free"
    except OSError:
        free = "its free space is unknown"
    return (
        f"need to write the checkpoint of step {step} in {str(folder)!r}, where "
        f"{free}, got {cause(error)}; the last good checkpoint is "
        f"{last}"
    )
