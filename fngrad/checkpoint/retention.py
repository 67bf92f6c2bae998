"""Which steps are kept, and deleting the others."""

from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

import fngrad.checkpoint.step_folders as step_folders
from fngrad.checkpoint.errors import CheckpointError, UnreadableError
from fngrad.checkpoint.reading import completed, rank
from fngrad.checkpoint.writing import locked


class Retention(NamedTuple):
    """Which steps are kept."""

    keep: int  # number of newest steps
    best: tuple[str, str] | None  # a metric and "min" or "max"; of equals, the oldest


def retain(
    folder: Path,
    written: Path,
    rule: Retention,
    damaged: Container[Path],
) -> None:
    """Delete all steps but the newest, the best and the one just written.

    Args:
        folder: holds the steps.
        written: a step that is kept in any case.
        rule: what else is kept; damaged steps do not count and are deleted.
        damaged: steps known to be damaged.

    Raises:
        CheckpointError: if another process writes there, deleting fails, or a step
            cannot be read here or now: then none is deleted.
    """
    try:
        with locked(folder):
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
    good = [x for x in completed(folder) if x.folder.path not in damaged]
    newest = {each.folder.step: each.folder.path for each in good}
    kept = {written, *list(newest.values())[-rule.keep :]}
    ranked = rank(good, rule.best) if rule.best else []
    kept |= {each.folder.path for each in ranked[:1]}
    for each in step_folders.listing(folder):
        if each.path not in kept:
            step_folders.delete(each.path)
