"""Bytes by name, in a folder that orbax-checkpoint writes and reads.

Every array goes in as plain bytes: what dtypes it knows, and that it takes -0.0 for a
zero it need not write, then make no difference.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fngrad.extras import import_extra


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
    orbax, handler = _open()
    place = import_extra("etils.epath", "checkpoint").Path(folder.absolute())
    lent = {name: array.view(_Lent) for name, array in arrays.items()}
    handler.save(place, args=orbax.args.PyTreeSave(lent))
    handler.finalize(place)
    handler.close()


def read(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Read what `write` wrote, whole.

    Raises:
        Exception: the files are not what orbax wrote; of many kinds.
        ImportError: orbax-checkpoint is missing.
    """
    if not names:
        return {}
    orbax, handler = _open()
    place = import_extra("etils.epath", "checkpoint").Path(folder.absolute())
    arrays = handler.restore(place, args=orbax.args.PyTreeRestore())
    handler.close()
    return {name: arrays[name] for name in names}


def _open() -> tuple[Any, Any]:
    """Return the library, and a handler without caches from earlier calls."""
    orbax = import_extra("orbax.checkpoint", "checkpoint", "orbax-checkpoint")
    return orbax, orbax.PyTreeCheckpointHandler(use_compression=False)
