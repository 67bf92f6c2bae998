"""Step folders: they appear and disappear atomically.

The folder of step 100 is ``00000100``. It is written under a hidden name and renamed
when it is complete; before it is deleted it is renamed again. So a reader never sees
half a step, wherever a process was killed. A step that is saved again gets a name of
its own, ``00000100-1``, before the older one is deleted.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fngrad.checkpoint.errors import UnreadableError

_VISIBLE = re.compile(r"(\d{8,})(?:-(\d+))?")
_HIDDEN = re.compile(r"\.\d{8,}(-\d+)?\.(writing|deleted)")


class StepFolder(NamedTuple):
    """A step in a folder; the newest one is the largest."""

    step: int
    version: int  # 0; 1, 2, ... if the step was saved again
    path: Path


def listing(folder: Path) -> list[StepFolder]:
    """Return the steps of a folder, oldest first; none if it does not exist.

    Raises:
        UnreadableError: if the folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnreadableError(f"need a folder to read, got {error}") from error
    matches = [match for name in names if (match := _VISIBLE.fullmatch(name))]
    return sorted(
        StepFolder(int(match[1]), int(match[2] or 0), folder / match[0])
        for match in matches
    )


def new_name(folder: Path, step: int) -> str:
    """Return an unused name for the folder of a step."""
    versions = [found.version for found in listing(folder) if found.step == step]
    return f"{step:08d}-{max(versions) + 1}" if versions else f"{step:08d}"


def hidden_path(folder: Path, name: str) -> Path:
    """Return where a step is written before it gets its name."""
    return folder / f".{name}.writing"


@contextlib.contextmanager
def hidden(folder: Path, name: str) -> Iterator[Path]:
    """Create the hidden folder in which a step is written; remove it on an error."""
    temporary = hidden_path(folder, name)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        remove(temporary)
        raise


def commit(temporary: Path, name: str) -> Path:
    """Flush all files to disk, then rename the folder to its visible name."""
    for root, _, names in os.walk(temporary):
        for file in names:
            _sync(Path(root, file))
        _sync(Path(root))
    final = temporary.with_name(name)
    os.rename(temporary, final)
    _sync(final.parent)
    return final


def delete(path: Path) -> None:
    """Hide a step by renaming it, then remove its files."""
    renamed = path.with_name(f".{path.name}.deleted")
    os.rename(path, renamed)
    remove(renamed)


def remove(path: Path) -> None:
    """Remove a hidden folder as far as possible; `sweep` removes the rest later."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sweep(folder: Path) -> None:
    """Remove what killed writers left. The caller must hold the folder's lock."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if _HIDDEN.fullmatch(name):
                remove(folder / name)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    file = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
