"""Fresh names for run folders, and moving an old run aside."""

import datetime
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from fngrad.files.json_values import write_json
from fngrad.files.local_paths import check_local
from fngrad.files.locks import Lock
from fngrad.logging.run_folder import read_manifest

RESUMED = "FNGRAD_RESUME"  # the environment variable of `fngrad resume`


def new_run(folder: str | Path) -> Path:
    """Make a fresh run folder in another one, named by the local time.

    Two that are made in the same second, by whatever processes, get different names.
    In a program that ``fngrad resume`` runs again, the first call returns the folder of
    the resumed run if that is in ``folder``.

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
    parent = Path(folder)
    resumed = os.environ.get(RESUMED)
    if resumed and Path(resumed).parent == parent.resolve():
        del os.environ[RESUMED]
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
        The new paths by the old ones, without folders that are empty or do not exist.

    Raises:
        LockError: if a process uses a folder.
        ValueError: if the current folder is one of them or inside.
        OSError: if a folder cannot be renamed.
    """
    if run is not None and os.environ.get(RESUMED) == str(run.resolve()):
        return {}
    folders = [folder for folder in (run, checkpoints) if folder is not None]
    moved = {folder: new for folder in folders if (new := _moved(folder))}
    if run in moved and checkpoints in moved:
        manifest = read_manifest(moved[run])
        new = {**manifest, "checkpoints": str(moved[checkpoints])}
        write_json(moved[run] / "manifest.json", new)
    return moved


def _moved(folder: Path) -> Path | None:
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir() or not os.listdir(folder):
        return None
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ValueError(
            f"need a folder that can be moved aside, got {str(folder)!r}, which holds "
            "the current folder: give each run a folder of its own, as "
            'fngrad.logging.new_run("runs") makes one'
        )
    unused = next(path for path in _numbered(folder, ".", 1) if not path.exists())
    with Lock(folder):
        if sys.platform != "win32":
            os.rename(folder, unused)
    if sys.platform == "win32":  # which cannot rename a folder with open files
        os.rename(folder, unused)
    return unused


def _numbered(path: Path, separator: str, first: int = 0) -> Iterator[Path]:
    """Yield the path itself if ``first`` is 0, then numbered ones."""
    for number in itertools.count(first):
        yield path.with_name(f"{path.name}{separator}{number}") if number else path
