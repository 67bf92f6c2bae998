"""Compiled programs on disk that were not written to their end.

JAX writes each under its final name. What is left of one when the process is killed or
the disk is full cannot be read, and JAX does not write it again: each later process
would warn and compile.
"""

import contextlib
import zlib
from importlib import import_module
from pathlib import Path

_CHECKED = ".checked"  # its modification time says when programs were last checked
_MARGIN = 60.0  # seconds; clocks of a shared folder may differ
_ZLIB, _ZSTD = 0x78, b"\x28\xb5\x2f\xfd"  # the first bytes of what they compressed
_SHORTEST = 8  # bytes; no program is shorter


def drop_damaged(folder: Path, entries: str) -> None:
    """Remove what was written since the last call and cannot be read.

    Args:
        folder: of the programs.
        entries: a glob of their files.
    """
    marker, last = folder / _CHECKED, 0.0
    with contextlib.suppress(OSError):
        last = marker.stat().st_mtime
    # Another process may drop entries too, and they may be another user's.
    for path in folder.glob(entries):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime > last - _MARGIN and is_damaged(path.read_bytes()):
                path.unlink()
    with contextlib.suppress(OSError):
        marker.touch()


def is_damaged(compressed: bytes) -> bool:
    """Return whether bytes, which zlib or Zstandard compressed, lack their end.

    What neither has compressed is not judged, nor Zstandard's where its library is not
    installed.

    Example:
        >>> import zlib
        >>> from fngrad.files.damaged_programs import is_damaged
        >>> whole = zlib.compress(b"a program")
        >>> is_damaged(whole), is_damaged(whole[:-1])
        (False, True)
    """
    if len(compressed) < _SHORTEST:
        return True
    head = int.from_bytes(compressed[:2])
    if head >> 8 == _ZLIB and head % 31 == 0:
        stream = zlib.decompressobj()
        try:
            stream.decompress(compressed)
        except zlib.error:
            return True
        return not stream.eof
    return compressed.startswith(_ZSTD) and _lacks_end_of_zstd(compressed)


def _lacks_end_of_zstd(compressed: bytes) -> bool:
    for library in ("compression.zstd", "zstandard"):
        with contextlib.suppress(ImportError):
            zstd = import_module(library)
            errors: tuple[type[Exception], ...] = (zstd.ZstdError, EOFError)
            try:
                zstd.decompress(compressed)
            except errors:
                return True
            return False
    return False
