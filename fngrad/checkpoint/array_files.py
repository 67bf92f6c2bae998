"""Arrays by name in a folder, written and read by orbax-checkpoint.

Each array is written as unsigned integers of its width, in its shape. So -0.0 is not
mistaken for the fill value, and orbax need not know the dtype.

Orbax reads some paths as patterns (``[``, ``*``) or addresses (``gs:``), its file
driver reads a backslash as a slash, and both refuse bytes that are not UTF-8. A folder
with such a name is reached through a symbolic link with a plain name.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fngrad.checkpoint.errors import CheckpointError
from fngrad.programs.optional_imports import import_extra

_PLAIN = re.compile(r"([A-Za-z]:)?[\w./ ~@+=,!#$%&'(){};^-]*")  # orbax takes it as is
_LONG = 1000  # characters of a path; a longer one is tried first
_GROUP = 1 << 26  # bytes read back at a time
_FILE = 1 << 26  # bytes of a file; orbax writes several faster than one of 2 GB


def write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays into a new folder.

    Args:
        folder: must not exist.
        arrays: unsigned integers by name, none of them empty. They must not change
            meanwhile: orbax does not copy them.

    Raises:
        OSError, ValueError: if the file system refuses (orbax raises either).
        ImportError: if orbax-checkpoint is missing.
    """
    if not arrays:
        folder.mkdir()
        return
    with _open(folder) as (orbax, checkpointer, path):
        tree = orbax.args.PyTreeSave(arrays, ocdbt_target_data_file_size=_FILE)
        checkpointer.save(path, args=tree)


def read(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Read the arrays that `write` wrote.

    Raises:
        Exception: of any type, if the files are not what orbax wrote.
        ImportError: if orbax-checkpoint is missing.
    """
    return _restore(folder, names) if names else {}


def check(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise unless `write` wrote these arrays so that they can be read.

    They are read in groups, to save memory.

    Raises:
        ValueError: if an array is read with other values; it is named.
        Exception: of any type, if the files cannot be read.
        ImportError: if orbax-checkpoint is missing.
    """
    for names in _groups(arrays):
        found = _restore(folder, names)
        for name in names:
            if not np.array_equal(found[name], arrays[name]):
                raise ValueError(
                    f"need arrays that are read as they were written, got {name!r} "
                    f"changed in {str(folder)!r}"
                )


def check_folder(folder: Path) -> None:
    """Raise unless arrays can be written below a folder and read back.

    A folder with a plain path passes; in any other, a trial is written.

    Args:
        folder: must exist.

    Raises:
        CheckpointError: if the trial fails; it is removed.
        ImportError: if orbax-checkpoint is missing.
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


def _restore(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    with _open(folder) as (orbax, checkpointer, path):
        some = orbax.args.PyTreeRestore(
            dict.fromkeys(names, 0),
            restore_args={name: orbax.RestoreArgs() for name in names},
            partial_restore=True,
        )
        return checkpointer.restore(path, args=some)


def _groups(arrays: dict[str, np.ndarray]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name, array in arrays.items():
        if group and size + array.nbytes > _GROUP:
            yield group
            group, size = [], 0
        group.append(name)
        size += array.nbytes
    if group:
        yield group


def _is_plain(folder: Path) -> bool:
    path = folder.absolute().as_posix()
    return _PLAIN.fullmatch(path) is not None and len(path) < _LONG


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[tuple[Any, Any, Path]]:
    """Yield the library, a new checkpointer, and the folder's path for it."""
    orbax = import_extra("orbax.checkpoint", "checkpoint", "orbax-checkpoint")
    handlers = orbax.type_handlers
    try:
        on_host = handlers.NumpyHandler(deepcopy_host_arrays=False)
    except TypeError:  # before 0.12.5 orbax copies every array first
        on_host = handlers.NumpyHandler()
    registry = handlers.create_type_handler_registry(
        (np.ndarray, on_host), (jax.Array, handlers.get_type_handler(jax.Array))
    )
    handler = orbax.PyTreeCheckpointHandler(
        use_compression=False, type_handler_registry=registry
    )
    with (
        _plainly_named(folder.absolute().parent) as parent,
        orbax.Checkpointer(handler) as checkpointer,
    ):
        yield orbax, checkpointer, parent / folder.name


@contextlib.contextmanager
def _plainly_named(folder: Path) -> Iterator[Path]:
    """Yield a path of a folder that orbax takes as is."""
    if _is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fngrad-") as temporary:
        link = Path(temporary, "folder")
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
