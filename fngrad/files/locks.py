"""Locks that let one process at a time write to a folder.

The kernel holds the lock, on an open file, and releases it when the process ends, for
whatever reason; a forked child does not share it. The file is never deleted, since two
processes could then lock two files of the same name. Its content (process, machine,
start) is for the error message.
"""

import contextlib
import datetime
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fngrad.files.local_paths import check_local, not_writable
from fngrad.programs.caller_warnings import warn

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_LOCKED_BYTE = 1 << 30  # beyond the text: Windows prevents reading locked bytes


class LockError(RuntimeError):
    """A folder is in use by another process, or cannot be locked."""


class Lock:
    """Lock a folder for writing while a ``with`` block runs; reading needs no lock.

    Args:
        folder: what is locked; it is made, with its parents.
        name: the file in it that is locked.
        purpose: what the folder is used for, for the error.

    Raises:
        LockError: on entering, if another process or another `Lock` of this one holds
            the lock (its process, machine and start are named), or the folder cannot
            be made or written.

    Example:
        >>> import tempfile
        >>> from fngrad.files.locks import Lock, LockError
        >>> with tempfile.TemporaryDirectory() as folder, Lock(folder):
        ...     try:
        ...         Lock(folder).__enter__()
        ...     except LockError as error:
        ...         print("in use by process" in str(error))
        True
    """

    def __init__(
        self, folder: str | Path, *, name: str = ".lock", purpose: str = "this run"
    ):
        check_local("a folder", folder)
        self.folder: Path = Path(folder)
        self._path = self.folder / name
        self._purpose = purpose
        self._file: int | None = None

    def __enter__(self) -> "Lock":
        file = self._open()
        try:
            _take_patiently(file, self._path)
        except BlockingIOError:
            holder = _read(self._path)
            os.close(file)
            raise self._in_use_by(holder) from None
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _HELD.add(self)
        with contextlib.suppress(OSError):  # a full disk; the lock is held nevertheless
            os.ftruncate(file, 0)
            os.write(file, _myself())
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            _HELD.discard(self)
            _let_go(file)

    def check(self) -> None:
        """Raise if another process holds the lock, or the folder cannot be written.

        Nothing is written.

        Raises:
            LockError: if so, as on entering.
        """
        if is_in_use(self.folder, name=self._path.name):
            raise self._in_use_by(_read(self._path))
        error = not_writable(self.folder)
        if error is not None:
            raise self._not_writable(error)

    def _in_use_by(self, holder: str) -> LockError:
        return LockError(
            f"need a folder for {self._purpose} that nobody else writes to, got "
            f"{str(self.folder)!r} in use by {holder}: wait until it ends, stop "
            "it, or use another folder"
        )

    def _not_writable(self, reason: Any) -> LockError:
        return LockError(
            f"need a folder that can be written, got {str(self.folder)!r}: {reason}"
        )

    def _forget(self) -> None:
        """Close a forked child's copy of the file; the parent keeps the lock."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def _open(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._not_writable(error) from error


def is_in_use(folder: str | Path, *, name: str = ".lock") -> bool:
    """Return whether a process holds the `Lock` of a folder; write nothing.

    This holds a shared lock for some microseconds, which a `Lock` that is entered just
    then waits for. On a file system without locks the answer is no.

    Args:
        folder: what may be locked; it need not exist.
        name: the file in it that would be locked.

    Example:
        >>> import tempfile
        >>> from fngrad.files.locks import Lock, is_in_use
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Lock(folder):
        ...         print(is_in_use(folder))
        ...     print(is_in_use(folder))
        True
        False
    """
    try:
        is_windows = sys.platform == "win32"
        file = os.open(Path(folder) / name, os.O_RDWR if is_windows else os.O_RDONLY)
    except OSError:
        return False
    try:
        _lock(file, is_shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        _unlock(file)
        return False
    finally:
        os.close(file)


@contextlib.contextmanager
def held(file: int) -> Iterator[None]:
    """Hold the kernel's lock on an open file while a block runs; wait for it.

    On a file system without locks the block runs without one.

    Args:
        file: its descriptor.

    Raises:
        OSError: if the file cannot be locked.
    """
    is_locked = True
    try:
        _wait_for(file)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        is_locked = False
    try:
        yield
    finally:
        if is_locked:
            _unlock(file)


def _wait_for(file: int) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        return
    while True:
        try:
            _lock(file)
            return
        except BlockingIOError:
            time.sleep(0.01)


def _unlock(file: int) -> None:
    with contextlib.suppress(OSError):  # closed meanwhile
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_UN)
            return
        import msvcrt

        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)


def _take_patiently(file: int, path: Path) -> None:
    """Take the lock; wait for one that `is_in_use` holds."""
    try:
        _take(file, path)
    except BlockingIOError:
        time.sleep(0.02)
        _take(file, path)


def _take(file: int, path: Path) -> None:
    try:
        _lock(file)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise LockError(f"need a lock on {str(path)!r}, got {error}") from error
        warn(
            f"the file system of {str(path)!r} has no locks: a second process could "
            "write there at the same time"
        )


def _lock(file: int, is_shared: bool = False) -> None:
    """Lock an open file, or raise BlockingIOError if another process has it."""
    if sys.platform != "win32":
        import fcntl

        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(*error.args) from error
    finally:
        os.lseek(file, 0, os.SEEK_SET)


def _let_go(file: int) -> None:
    # Closing is not enough while a child, between fork and exec, has the file too.
    _unlock(file)
    os.close(file)


_HELD: set[Lock] = set()  # by this process


def _forget_in_child() -> None:
    while _HELD:
        _HELD.pop()._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _myself() -> bytes:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": now}
    return json.dumps(me).encode()


def _read(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that cannot be identified"
