"""Files of lines that several writers share, in one process or in many."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fngrad.files.atomic_writes import write_atomically
from fngrad.files.locks import held

_BLOCK = 1 << 16  # bytes


class LineFile:
    """A file of lines, open to write more.

    What is done with it happens in a ``with file.own():`` block, which holds the
    kernel's lock on the file; who waited for it and finds that the file was replaced
    opens the new one. So no writer loses another's lines. The line that a kill tore is
    cut off at opening.

    Args:
        path: the file and its folder are made if need be; the path is resolved once.
        openings: what a file of this kind begins with, one of them.

    Raises:
        ValueError: the file begins otherwise; it is left as it is.
        OSError: it cannot be written.

    Example:
        >>> import tempfile
        >>> from fngrad.logging.lines import LineFile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a, b = (LineFile(f"{folder}/a.txt", ["line"]) for _ in range(2))
        ...     for number, file in enumerate((a, b)):
        ...         with file.own():
        ...             file.append(f"line {number}\\n".encode())
        ...     print(a.read())
        ...     a.close()
        ...     b.close()
        b'line 0\\nline 1\\n'
    """

    def __init__(self, path: str | Path, openings: Sequence[str]):
        self.path = Path(os.path.realpath(path))
        self.version = 0  # counts the files of this name that were opened
        self._is_closed = False
        self._file = self._open()
        try:
            with self.own():
                self._check(openings)
                _cut_torn_line(self._file, self.path)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Keep all others from the file while a block runs.

        Raises:
            ValueError: it was closed.
            OSError: it was removed and cannot be made again.
        """
        if self._is_closed:
            raise ValueError(f"need an open file, got {str(self.path)!r}, closed")
        while True:
            if self._file.closed:
                self._file = self._open()
            with held(self._file.fileno()):
                if self._is_current():
                    yield
                    return
            self._file.close()

    def append(self, data: bytes) -> None:
        """Write whole lines at the end, or nothing; the file must be `own`.

        Raises:
            OSError: the disk is full, or another failure to write.
        """
        size = os.fstat(self._file.fileno()).st_size
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            raise

    def read(self) -> bytes:
        """Return all that is in the file."""
        return self.path.read_bytes()

    def replace(self, content: bytes) -> None:
        """Write the file anew in one atomic step; the file must be `own`.

        The block should end with this, since the lock is not on the new file.

        Raises:
            OSError: the folder cannot be written; the old content stands.
        """
        if sys.platform == "win32":  # which replaces no open file
            self._file.close()
        write_atomically(self.path, content)

    def close(self) -> None:
        """Let go of the file; closing twice is allowed."""
        self._is_closed = True
        self._file.close()

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.version += 1
        # Without a buffer, which would try to write once more what a full disk refused.
        return self.path.open("ab", buffering=0)  # pyright: ignore[reportReturnType]

    def _is_current(self) -> bool:
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._file.fileno()))

    def _check(self, openings: Sequence[str]) -> None:
        with self.path.open("rb") as file:
            begin = file.read(max(map(len, openings)))
        known = [opening.encode() for opening in openings]
        if not any(begin[: len(o)] == o[: len(begin)] for o in known):
            raise ValueError(
                f"need a file that begins with {openings[0]!r}, got {begin!r} in "
                f"{self.path}; take another path"
            )


def _cut_torn_line(file: BinaryIO, path: Path) -> None:
    """Cut off what follows the last newline."""
    size = os.fstat(file.fileno()).st_size
    with path.open("rb") as content:
        end = size
        while end > 0:
            start = max(0, end - _BLOCK)
            content.seek(start)
            newline = content.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
    if end < size:
        os.ftruncate(file.fileno(), end)
