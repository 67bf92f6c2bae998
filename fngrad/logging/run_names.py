"""Fresh names for run folders, and moving an old run aside."""

import contextlib
import datetime
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from fngrad.distributed import processes
from fngrad.files.json_values import write_json
from fngrad.files.local_paths import check_local
from fngrad.files.locks import Lock, LockError, is_in_use
from fngrad.logging.run_folder import read_manifest

RESUMED = "FNGRAD_RESUME"  # the environment variable of `fngrad resume`
_TAKEN: set[str] = set()  # the folder that it named, once `new_run` returned it


def new_run(folder: str | Path) -> Path:
    """Make a fresh run folder in another one, named by the local time.

    Two that are made in the same second, by whatever processes, get different names.
    In a program that ``fngrad resume`` runs again, the first call returns the folder of
    the resumed run if that is in ``folder``. Several processes of one program all call
    this; the first makes the folder.

    Args:
        folder: where it is made, such as ``"runs/digits"``; its parents are made too.

    Returns:
        The path of the new, empty folder, for ``fit(..., run_dir=...)``.

    Raises:
        ValueError: if ``folder`` is a URL.
        TypeError: if it is not a path.
        OSError: if the folder cannot be made.

    Example:
        >>> import tempfile
        >>> import fngrad.logging as logging
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first, second = (logging.new_run(f"{folder}/digits") for _ in range(2))
        >>> first.parent.name, first != second
        ('digits', True)
    """
    check_local("a folder of runs", folder)
    mine = processes()
    if mine.count == 1:
        return _new_run(Path(folder))
    path, failure = "", None
    if mine.is_first:
        try:
            path = str(_new_run(Path(folder)))
        except OSError as error:
            failure = error
    path = mine.texts(path)[0]
    if not path:
        raise OSError(
            f"need a folder of runs that process 0 can write, got {folder!r}"
        ) from failure
    return Path(path)


def _new_run(parent: Path) -> Path:
    resumed = os.environ.get(RESUMED)
    if resumed and Path(resumed).parent == parent.resolve():
        _TAKEN.add(os.environ.pop(RESUMED))
        return parent / Path(resumed).name
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    for path in _numbered(parent / now, "-"):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError  # there is always another number


def move_aside(run: Path | None, checkpoints: Path | None) -> dict[Path, Path]:
    """Rename the folders of a run to the first unused ``<name>.1``, ``<name>.2``, ...

    A run that ``fngrad resume`` goes on with is left where it is.

    Args:
        run: its folder, if it has one.
        checkpoints: their folder, which may be in that of the run.

    Returns:
        The new paths by the old ones, without folders that hold neither records of a
        run nor checkpoints.

    Raises:
        LockError: if a process uses a folder, or one in it; then nothing is moved.
        ValueError: if the current folder is one of them or inside.
        OSError: if a folder cannot be renamed.
    """
    resumed = {os.environ.get(RESUMED), *_TAKEN}
    if run is not None and str(run.resolve()) in resumed:
        return {}
    given = [folder for folder in (run, checkpoints) if folder is not None]
    folders = {f: Path(os.path.abspath(f)) for f in given if _holds_a_run(f)}
    for folder in folders.values():
        _check_movable(folder)
    with contextlib.ExitStack() as locks:  # all of them before anything is moved
        for folder in folders.values():
            locks.enter_context(Lock(folder))
        if sys.platform == "win32":  # which cannot rename a folder with open files
            locks.close()
        moved = _renamed(folders)
    if run in moved and checkpoints in moved:
        manifest = read_manifest(moved[run])
        new = {**manifest, "checkpoints": str(moved[checkpoints])}
        write_json(moved[run] / "manifest.json", new)
    return moved


def _holds_a_run(folder: Path) -> bool:
    """Return whether a folder holds records of a run, or checkpoints."""
    if not folder.is_dir():
        return False
    names = os.listdir(folder)
    records = {"manifest.json", "metrics.jsonl"}
    return bool(records & {*names}) or any(name[:8].isdecimal() for name in names)


def _check_movable(folder: Path) -> None:
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ValueError(
            f"need a folder that can be moved aside, got {str(folder)!r}, which holds "
            "the current folder: give each run a folder of its own, as "
            'fngrad.logging.new_run("runs") makes one'
        )
    for lock in folder.rglob(".lock"):
        if is_in_use(lock.parent):
            raise LockError(
                f"need a folder that can be moved aside, got {str(folder)!r}, in which "
                f"{str(lock.parent)!r} is in use: wait until that run ends"
            )


def _renamed(folders: dict[Path, Path]) -> dict[Path, Path]:
    """Rename all folders, or none."""
    moved: dict[Path, Path] = {}
    try:
        for given, folder in folders.items():
            if not folder.exists():  # it was in one that is moved
                continue
            unused = next(p for p in _numbered(folder, ".", 1) if not p.exists())
            os.rename(folder, unused)
            moved[given] = unused
    except OSError:
        for given, unused in moved.items():
            os.rename(unused, folders[given])
        raise
    return moved


def _numbered(path: Path, separator: str, first: int = 0) -> Iterator[Path]:
    """Yield the path itself if ``first`` is 0, then numbered ones."""
    for number in itertools.count(first):
        yield path.with_name(f"{path.name}{separator}{number}") if number else path
