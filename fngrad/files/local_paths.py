"""Checks that a path is in a local or mounted file system."""

import os
import re
from pathlib import Path
from typing import Any

# A single letter is a drive of Windows. A path object keeps one slash of two.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SHORTENED = re.compile(r"(gs|s3|az|abfss?|hdfs|https?|ftp|file|memory):/")


def check_local(name: str, path: Any) -> None:
    """Raise unless a path is a string, a path object or ``None``, and not a URL.

    Args:
        name: of the argument.
        path: its value.

    Raises:
        TypeError: if it is of another type, such as a state in place of a folder.
        ValueError: if it is a URL.

    Example:
        >>> from fngrad.files.local_paths import check_local
        >>> check_local("run_dir", "runs/1")
    """
    if not (path is None or isinstance(path, str | os.PathLike)):
        got = type(path).__name__
        if name == "folder":
            got += "; first, as in save(folder, state) and restore(folder, like)"
        raise TypeError(f"need {name}, a string or a path, got {got}")
    if is_url(path):
        raise ValueError(
            f"need {name} in a file system of this machine, got {str(path)!r}: files, "
            "locks and atomic renames are those of a local or mounted folder; mount "
            "the bucket (gcsfuse, s3fs), or copy the folder there after the run"
        )


def is_url(path: Any) -> bool:
    """Return whether a path is a URL; a path object keeps one slash of its two.

    Example:
        >>> from fngrad.files.local_paths import is_url
        >>> is_url("gs://bucket/runs"), is_url("C:/runs")
        (True, False)
    """
    text = str(path)
    is_short = not isinstance(path, str) and _SHORTENED.match(text)
    return bool(_URL.match(text) or is_short)


def not_writable(folder: Path) -> OSError | None:
    """Return the error if a folder cannot be made or written; write nothing."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if existing.is_dir() and os.access(existing, os.W_OK):
        return None
    kind = PermissionError if existing.is_dir() else FileExistsError
    return kind(f"{str(existing)!r} is not a writable folder")


def absolute(path: Any) -> Path | None:
    """Return an absolute path, which stays when the working folder changes."""
    return None if path is None else Path(path).absolute()
