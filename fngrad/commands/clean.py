"""`fngrad clean`: which checkpoints can be deleted, and deleting them."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import fngrad.checkpoint.reading as reading
import fngrad.checkpoint.step_folders as step_folders
import fngrad.commands.run_records as run_records
import fngrad.numerics as numerics
import fngrad.programs.text_tables as text_tables
from fngrad.checkpoint.errors import CheckpointError, UnreadableError
from fngrad.checkpoint.reading import completed, recorded_best_paths
from fngrad.checkpoint.writing import locked
from fngrad.files.locks import Lock, LockError, is_in_use
from fngrad.logging.run_folder import read_manifest
from fngrad.programs.units import size_text


class Superfluous(NamedTuple):
    """A checkpoint that can be deleted."""

    path: Path
    step: int
    size: int  # bytes


def clean(
    folder: Path = Path("runs"), /, *, keep: int = 1, delete: bool = False
) -> int:
    """List the checkpoints that can be deleted, or delete them.

    Of every run the newest checkpoints whose files are whole, and that of the best
    evaluation, are kept. Runs that are running are left alone, and so are damaged
    checkpoints, and checkpoints of which none is whole.

    Args:
        folder: of runs, or of one run.
        keep: how many of the newest checkpoints of each run to keep.
        delete: delete them; without it nothing is changed.
    """
    numerics.check_count("keep", keep, 1)
    rows, total = [["checkpoint", "step", "size"]], 0
    for run in run_records.find_runs(folder):
        checkpoints = run_records.checkpoint_folder(run, read_manifest(run))
        if checkpoints is None:
            continue
        if is_in_use(run) or is_in_use(checkpoints):
            print(f"left alone, as it is running: {run}")
            continue
        try:
            take = _deleted if delete else superfluous
            found = take(checkpoints, keep)
        except (LockError, CheckpointError) as error:
            print(f"left alone: {run}: {error}")
            continue
        rows += [[str(x.path), str(x.step), size_text(x.size)] for x in found]
        total += sum(x.size for x in found)
    if len(rows) > 1:
        print(text_tables.table(rows, left=1))
    what = "deleted" if delete else "can be deleted"
    more = "; --delete deletes them" if len(rows) > 1 and not delete else ""
    print(f"{len(rows) - 1} checkpoints {what}, {size_text(total)}{more}")
    return 0


def superfluous(folder: Path, keep: int) -> list[Superfluous]:
    """Return the checkpoints but the newest whole ones and the best, oldest first.

    Args:
        folder: of checkpoints.
        keep: how many of the newest steps are kept.

    Raises:
        CheckpointError: if a step may be complete, but cannot be read here or now.
    """
    found = completed(folder)
    newest = {each.folder.step: each.folder.path for each in found}
    damaged: set[Path] = set()

    def whole(paths: Iterable[Path]) -> Iterator[Path]:
        for path in paths:
            if _is_whole(path):
                yield path
            else:
                damaged.add(path)

    kept = set(itertools.islice(whole(reversed(newest.values())), keep))
    if not kept:
        return []
    kept |= {*itertools.islice(whole(recorded_best_paths(folder)), 1), *damaged}
    return [
        Superfluous(each.folder.path, each.folder.step, _size(each.folder.path))
        for each in found
        if each.folder.path not in kept
    ]


def _is_whole(path: Path) -> bool:
    """Return whether the files of a checkpoint hold what was written.

    Raises:
        UnreadableError: if one cannot be read here or now.
    """
    try:
        reading.check(path)
    except UnreadableError:
        raise
    except CheckpointError:
        return False
    return True


def _deleted(folder: Path, keep: int) -> list[Superfluous]:
    """Delete what is superfluous, and what killed writers left; return it.

    Raises:
        LockError: if a run uses the folder.
        CheckpointError: if a process writes to it, or a step cannot be read now.
    """
    with Lock(folder), locked(folder):
        step_folders.sweep(folder)
        found = superfluous(folder, keep)
        for each in found:
            step_folders.delete(each.path)
    return found


def _size(folder: Path) -> int:
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.stat().st_size
