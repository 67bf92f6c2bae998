"""Which processes of a run have died: each locks a file of its own while it lives.

A computation that another process has left ends with an error of the network, which
names nobody. The kernel releases the lock of a process that is killed, and a process
that ends by itself removes its file first: a file without a lock is that of a dead one.
"""

import contextlib
import time
from pathlib import Path

from fngrad.distributed import Processes
from fngrad.files.locks import Lock, LockError, is_in_use

_PREFIX = ".process-"
_PATIENCE = 1.0  # seconds: a connection may be closed before a lock is released
_SECONDS_BETWEEN_LOOKS = 0.05


class Presence(contextlib.ExitStack):
    """A lock that tells the other processes of a run that this one lives.

    Args:
        folder: one that all processes share.
        mine: the processes.
    """

    def __init__(self, folder: Path, mine: Processes):
        super().__init__()
        self._folder, self._mine = folder, mine
        self._seen: list[int] = []
        # Where it cannot be locked, nobody is named.
        with contextlib.suppress(LockError):
            self.enter_context(Lock(folder, name=_name(mine.rank)))
            self.callback(self._remove)

    def look(self) -> None:
        """Note whose locks can be seen; call it when all are known to live.

        A file system may have no locks, or show this machine's alone.
        """
        ranks = range(self._mine.count)
        self._seen = [r for r in ranks if is_in_use(self._folder, name=_name(r))]

    def dead(self) -> list[int]:
        """Return the processes that were killed, after at most a second.

        JAX ends all processes when the first one has ended: then it alone is named.
        """
        end = time.monotonic() + _PATIENCE
        while self._seen and time.monotonic() < end:
            found = [rank for rank in self._seen if self._is_dead(rank)]
            if found:
                return found[:1] if found[0] == 0 else found
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return []

    def _is_dead(self, rank: int) -> bool:
        name = _name(rank)
        # In this order: a process that ends removes its file before it unlocks it.
        is_locked = is_in_use(self._folder, name=name)
        return not is_locked and (self._folder / name).exists()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            (self._folder / _name(self._mine.rank)).unlink()


def forget_dead(folder: Path) -> None:
    """Remove what killed processes left. The caller must hold the folder's lock."""
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _name(rank: int) -> str:
    return f"{_PREFIX}{rank}"
