"""Bytes by name, in a folder that orbax-checkpoint writes and reads.

Every array goes in as plain bytes: what dtypes it knows, and that it takes -0.0 for a
zero it need not write, then make no difference.

Orbax takes a path for a pattern (``[``, ``*``) and for an address (``gs:``), its file
driver takes a backslash for a slash, and neither takes bytes that are no UTF-8. A
folder with such a name is handed to them under a plain one, by a symbolic link.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fngrad.checkpoint.errors import CheckpointError
from fngrad.programs.optional_imports import import_extra

_PLAIN = re.compile(r"([A-Za-z]:)?[\w./ ~@+=,!#$%&'(){};^-]*")  # taken as it is
_LONG = 1000  # characters of a path, from where it is tried
_GROUP = 1 << 26  # bytes that are read back at a time


class _Lent(np.ndarray):
    """An array that stays as it is while orbax, which would copy it, writes it."""

    def __deepcopy__(self, memo: Any) -> "_Lent":
        return self


def write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays of bytes into a folder, which is made.

    Args:
        folder: what is not there yet.
        arrays: uint8, shape (n,) with n >= 1, by name; nobody may write to them.

    Raises:
        OSError, ValueError: the file system refuses; which it is, is orbax's choice.
        ImportError: orbax-checkpoint is missing.
    """
    folder.mkdir()
    if not arrays:
        return
    with _open(folder) as (orbax, handler, place):
        lent = {name: array.view(_Lent) for name, array in arrays.items()}
        handler.save(place, args=orbax.args.PyTreeSave(lent))
        handler.finalize(place)


def read(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Read what `write` wrote, whole.

    Raises:
        Exception: the files are not what orbax wrote; of many kinds.
        ImportError: orbax-checkpoint is missing.
    """
    if not names:
        return {}
    with _open(folder) as (orbax, handler, place):
        arrays = handler.restore(place, args=orbax.args.PyTreeRestore())
    return {name: arrays[name] for name in names}


def check(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise unless `write` wrote these arrays so that they can be read.

    A part of them is read at a time, so that little memory is taken.

    Raises:
        ValueError: an array reads as something else; its name is given.
        Exception: the files cannot be read; of many kinds.
        ImportError: orbax-checkpoint is missing.
    """
    if not arrays:
        return
    with _open(folder) as (orbax, handler, place):
        for names in _groups(arrays):
            asked = {name: orbax.RestoreArgs() for name in names}
            some = orbax.args.PyTreeRestore(
                dict.fromkeys(names, 0), restore_args=asked, partial_restore=True
            )
            found = handler.restore(place, args=some)
            for name in names:
                if not np.array_equal(found[name], arrays[name]):
                    raise ValueError(
                        f"need arrays that read as they were written, got {name!r} "
                        f"changed in {str(folder)!r}"
                    )


def check_folder(folder: Path) -> None:
    """Raise unless arrays can be written below a folder and read back.

    A folder with a plain path is taken as it is; with any other, it is tried.

    Args:
        folder: which is there.

    Raises:
        CheckpointError: they cannot; what was tried is removed.
        ImportError: orbax-checkpoint is missing.
    """
    if _is_plain(folder):
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".trial.", dir=folder) as trial:
            arrays = {"000000": np.arange(8, dtype=np.uint8)}
            write(Path(trial, "arrays"), arrays)
            check(Path(trial, "arrays"), arrays)
    except ImportError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"need a folder in which arrays can be written and read, got "
            f"{str(folder)!r}, where a trial ended with {type(error).__name__}: "
            f"{error}; a path of ASCII letters, digits and '-', '_', '.' always works"
        ) from error


def _groups(arrays: dict[str, np.ndarray]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name, array in arrays.items():
        if group and size + array.nbytes > _GROUP:
            yield group
            group, size = [], 0
        group.append(name)
        size += array.nbytes
    yield group


def _is_plain(folder: Path) -> bool:
    path = folder.absolute().as_posix()
    return _PLAIN.fullmatch(path) is not None and len(path) < _LONG


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[tuple[Any, Any, Any]]:
    """Give the library, a handler without caches from earlier calls, and its path."""
    orbax = import_extra("orbax.checkpoint", "checkpoint", "orbax-checkpoint")
    epath = import_extra("etils.epath", "checkpoint")
    with _plainly_named(folder.absolute()) as path:
        handler = orbax.PyTreeCheckpointHandler(use_compression=False)
        yield orbax, handler, epath.Path(path)
        handler.close()


@contextlib.contextmanager
def _plainly_named(folder: Path) -> Iterator[Path]:
    """Give a path of a folder that orbax takes as it is."""
    if _is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fngrad-") as temporary:
        link = Path(temporary, "arrays")
        if not _is_plain(link):
            raise CheckpointError(
                f"need a temporary folder (TMPDIR) of ASCII letters, digits and '-', "
                f"'_', '.' to write in {str(folder)!r}, got {tempfile.gettempdir()!r}"
            )
        link.symlink_to(folder, target_is_directory=True)
        try:
            yield link
        finally:
            link.unlink()
