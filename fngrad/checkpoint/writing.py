"""Writing a step atomically, and deleting old ones."""

import contextlib
import shutil
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.manifest as manifest
import fngrad.checkpoint.step_folders as step_folders
from fngrad.checkpoint.device_transfer import HostTree
from fngrad.checkpoint.errors import CheckpointError, UnreadableError
from fngrad.checkpoint.reading import completed, rank
from fngrad.files.locks import Lock, LockError

DEFAULT_BEST = ("val/loss", "min")


class Retention(NamedTuple):
    """Which steps are kept."""

    keep: int  # number of newest steps
    best: tuple[str, str] | None  # a metric and "min" or "max"; of equals, the oldest


def write_step(
    folder: Path,
    step: int,
    host: HostTree,
    metrics: dict[str, Any],
    notes: Any,
    best: tuple[str, str] = DEFAULT_BEST,
) -> Path:
    """Write a step atomically; return its folder.

    What killed writers left is removed first. Metrics and notes are in JSON's types;
    ``best`` is recorded for ``restore(step="best")``.

    Raises:
        CheckpointError: if the folder cannot be written (with the error, the folder,
            its free bytes and the last good step), or another process writes there.
        ImportError: if orbax-checkpoint is missing.
    """
    try:
        with _locked(folder):
            step_folders.sweep(folder)
            name = step_folders.new_name(folder, step)
            with step_folders.hidden(folder, name) as temporary:
                arrays = manifest.arrays_of(host)
                array_files.write(temporary / manifest.ARRAYS, arrays)
                manifest.write(temporary, step, host, metrics, notes, best)
                _check(temporary, arrays)
                return step_folders.commit(temporary, name)
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        raise CheckpointError(_explain(folder, step, error)) from error


def _check(temporary: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise unless what was written has its sizes and is read unchanged."""
    manifest.check_sizes(temporary, manifest.read(temporary))
    array_files.check(temporary / manifest.ARRAYS, arrays)


def retain(
    folder: Path,
    written: Path,
    rule: Retention,
    damaged: Container[Path],
) -> None:
    """Delete all steps but the newest, the best and the one just written.

    Args:
        folder: of the steps.
        written: the step that is kept in any case.
        rule: what else is kept; damaged steps do not count and are deleted.
        damaged: steps known to be damaged.

    Raises:
        CheckpointError: if another process writes there, deleting fails, or a step
            cannot be read here or now: then none is deleted.
    """
    try:
        with _locked(folder):
            _delete_all_but(folder, written, rule, damaged)
    except (OSError, UnreadableError) as error:
        raise CheckpointError(
            f"need to delete old steps, got {error}; the new one is in {written}"
        ) from error


def _delete_all_but(
    folder: Path,
    written: Path,
    rule: Retention,
    damaged: Container[Path],
) -> None:
    found = step_folders.listing(folder)
    good = [x for x in completed(folder) if x.folder.path not in damaged]
    newest: dict[int, Path] = {}
    for each in good:
        newest[each.folder.step] = each.folder.path
    kept = {written, *list(newest.values())[-rule.keep :]}
    ranked = rank(good, rule.best) if rule.best else []
    kept |= {each.folder.path for each in ranked[:1]}
    for each in found:
        if each.path not in kept:
            step_folders.delete(each.path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with Lock(folder, name=".writing", purpose="checkpoints"):
            yield
    except LockError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise CheckpointError(str(error)) from error


def _explain(folder: Path, step: int, error: Exception) -> str:
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
        f"{free}, got {type(error).__name__}: {error}; the last good checkpoint is "
        f"{last}"
    )
