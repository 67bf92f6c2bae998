"""Files of lines that several writers may share, in one process or in many."""

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
    """A file of lines, open for appending.

    Every operation takes place in a ``with file.own():`` block, which holds the
    kernel's lock on the file. A writer that waited for the lock and finds the file
    replaced opens the new one, so no writer loses another's lines. An incomplete last
    line, which a killed process leaves, is removed when the file is opened.

    Args:
        path: the file; it and its folder are made if needed. The path is resolved once.
        openings: the ways in which a file of this kind can begin.

    Raises:
        ValueError: if the file begins in another way; it is left as it is.
        OSError: if it cannot be written.

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
        self.path: Path = Path(os.path.realpath(path))
        self.version: int = 0  # increases each time that the file is opened
        self._is_closed = False
        self._file = self._open()
        try:
            with self.own():
                self._check(openings)
                _cut_incomplete_line(self._file, self.path)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Hold the lock on the file while a block runs; wait for it.

        Raises:
            ValueError: if the file was closed.
            OSError: if it was removed and cannot be made again.
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
        """Append whole lines, or nothing; only in a block of `own`.

        Raises:
            OSError: if the write fails, as on a full disk.
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
        """Return the content of the file."""
        return self.path.read_bytes()

    def replace(self, content: bytes) -> None:
        """Replace the content in one atomic step; only in a block of `own`.

        This must be the last operation in the block: the new file is not locked.

        Raises:
            OSError: if the folder cannot be written; the old content remains.
        """
        if sys.platform == "win32":  # which cannot replace an open file
            self._file.close()
        write_atomically(self.path, content)

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        self._is_closed = True
        self._file.close()

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.version += 1
        # Unbuffered: a buffer would write again what a full disk has refused.
        return self.path.open("ab", buffering=0)  # pyright: ignore[reportReturnType]

    def _is_current(self) -> bool:
        try:
            current = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(current, os.fstat(self._file.fileno()))

    def _check(self, openings: Sequence[str]) -> None:
        with self.path.open("rb") as file:
            begin = file.read(max(map(len, openings)))
        known = [opening.encode() for opening in openings]
        if not any(begin[: len(o)] == o[: len(begin)] for o in known):
            raise ValueError(
                f"need a file that begins with {openings[0]!r}, got {begin!r} in "
                f"{self.path}; take another path"
            )


def _cut_incomplete_line(file: BinaryIO, path: Path) -> None:
    """Remove what follows the last newline."""
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
