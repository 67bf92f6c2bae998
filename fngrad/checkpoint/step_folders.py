"""The folders of steps: how they appear, all at once, and how they go.

A step is a folder named after it, ``00000100``. It is written under a hidden name and
renamed when it is whole; to be deleted it is renamed first. So a reader never sees
half a step, wherever a process was killed. What is saved again at a step that is
there gets a name of its own, ``00000100-1``, before the older one goes.
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
    """A step that is there; the newest of a folder is the largest."""

    step: int
    version: int  # 0, and more where a step was saved again
    path: Path


def listing(folder: Path) -> list[StepFolder]:
    """Return the steps of a folder, oldest first; none if there is no folder.

    Raises:
        UnreadableError: the folder cannot be read.
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
    """Return the name under which a step can appear."""
    versions = [found.version for found in listing(folder) if found.step == step]
    return f"{step:08d}-{max(versions) + 1}" if versions else f"{step:08d}"


@contextlib.contextmanager
def hidden(folder: Path, name: str) -> Iterator[Path]:
    """Make the hidden folder in which a step is written; an error removes it."""
    temporary = folder / f".{name}.writing"
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        remove(temporary)
        raise


def commit(temporary: Path, name: str) -> Path:
    """Put all that was written on the disk, then let the step appear."""
    for root, _, names in os.walk(temporary):
        for file in names:
            _sync(Path(root, file))
        _sync(Path(root))
    final = temporary.with_name(name)
    os.rename(temporary, final)
    _sync(final.parent)
    return final


def delete(path: Path) -> None:
    """Let a step disappear at once, then remove its files."""
    hidden = path.with_name(f".{path.name}.deleted")
    os.rename(path, hidden)
    remove(hidden)


def remove(path: Path) -> None:
    """Remove a hidden folder as far as it can be; a sweep takes the rest."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sweep(folder: Path) -> None:
    """Remove what killed writers left; only for who holds the folder's lock."""
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
