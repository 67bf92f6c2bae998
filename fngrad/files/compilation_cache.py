"""Compiled programs kept on disk, so that a second process compiles nothing.

JAX keeps them: its persistent compilation cache. This module chooses the folder, caches
every program however short, and drops old entries by size.
"""

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from fngrad.files.damaged_programs import drop_damaged
from fngrad.files.local_paths import is_url, not_writable
from fngrad.programs.optional_imports import import_extra

MAX_BYTES = 1 << 30  # of all entries; older ones are dropped
_ENTRIES = "*-cache"  # one file per program, as JAX names it
_TRIMMED = ".trimmed"  # its modification time says when entries were last dropped
_SECONDS_BETWEEN_TRIMS = 24 * 3600.0


class CompilationCache(NamedTuple):
    """Where JAX keeps compiled programs in this process."""

    folder: str | None  # a path or a URL; None if it keeps none
    is_on: bool  # False where ``jax_enable_compilation_cache`` is
    entries: int | None  # programs; None where there is no local folder
    size: int | None  # bytes of them

    @property
    def is_writable(self) -> bool | None:
        """Whether programs can be added; None where there is no local folder."""
        if self.entries is None or self.folder is None:
            return None
        return not_writable(Path(self.folder)) is None


def cache_compilations(folder: str | os.PathLike[str] | None = None) -> str:
    """Keep every compiled program in a folder, where later processes find it.

    The next process that compiles the same program for the same device with the same
    version of JAX reads it from there instead, whatever the script's name and line
    numbers; the results have the same bits. What was compiled before the call stays as
    it is, so call it first. On Colab, take a folder of mounted storage, such as
    ``"/content/drive/MyDrive/compiled"``, and the next runtime starts warm.

    JAX's environment variables apply: ``JAX_ENABLE_COMPILATION_CACHE=false`` turns the
    cache off, ``JAX_COMPILATION_CACHE_DIR`` names the default folder. Once a day the
    least recently read entries are dropped until the others take at most 1 GiB, unless
    ``JAX_COMPILATION_CACHE_MAX_SIZE`` makes JAX itself drop them (``fngrad[cache]``).
    Entries that are half-written, as a killed process leaves them, are removed at the
    next call.
    JAX runs what it finds in the folder: share it only with users you trust.

    Args:
        folder: where the programs are kept; it is made if needed. A relative path is
            resolved once, ``~`` is the home folder, a URL such as ``gs://bucket/path``
            is passed to JAX as it is. ``None`` means ``JAX_COMPILATION_CACHE_DIR``
            where that is set, else ``fngrad/compiled`` in the user's cache folder.

    Returns:
        The folder, as an absolute path or a URL.

    Raises:
        OSError: if the folder cannot be made or written.
        TypeError: if ``folder`` is not a path.
        ValueError: if it is empty.
        ImportError: if it is a URL and etils is missing, or JAX is to drop entries and
            filelock is missing.

    Example:
        >>> import fngrad as fg
        >>> fg.cache_compilations("~/compiled")  # doctest: +SKIP
        '/home/me/compiled'
    """
    config: Any = jax.config  # type checkers do not know its settings
    if folder is None:
        folder = config.jax_compilation_cache_dir or _user_folder()
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"need folder, a string or a path, got {folder!r}")
    path = os.fspath(folder)
    if not path:
        raise ValueError("need folder, a path, got ''; \".\" is the current folder")
    if is_url(folder):
        path = path if "://" in path else path.replace(":/", "://", 1)
        import_extra("etils.epath", "checkpoint", "etils")  # JAX needs it there
    else:
        path = os.path.abspath(os.path.expanduser(path))
        _make_writable(Path(path))
        if config.jax_compilation_cache_max_size == -1:
            _trim(Path(path))
        else:
            import_extra("filelock", "cache")  # JAX needs it to drop entries
        drop_damaged(Path(path), _ENTRIES)
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    reset_cache()  # the first compilation of a process fixes the folder
    return path


def current_cache() -> CompilationCache:
    """Return where this process keeps compiled programs, and how much is there.

    Example:
        >>> from fngrad.files.compilation_cache import current_cache
        >>> current_cache().is_on
        True
    """
    config: Any = jax.config  # type checkers do not know its settings
    folder = config.jax_compilation_cache_dir or None
    entries = size = None
    if folder is not None and not is_url(folder):
        entries = size = 0
        for path in Path(folder).glob(_ENTRIES):
            with contextlib.suppress(OSError):  # another process may drop it
                size += path.stat().st_size
                entries += 1
    return CompilationCache(
        folder, bool(config.jax_enable_compilation_cache), entries, size
    )


def _user_folder() -> Path:
    """Return where this platform keeps a user's caches, with this library's name."""
    home = Path.home()
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = home / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "")
        if not caches.is_absolute():  # by its specification it is ignored then
            caches = home / ".cache"
    return caches / "fngrad" / "compiled"


def _make_writable(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f"need a folder for compiled programs that can be written, got {error}: "
            "pass another one to cache_compilations, or set JAX_COMPILATION_CACHE_DIR"
        ) from error


def _trim(folder: Path) -> None:
    """Remove the least recently read entries, at most once a day.

    JAX can drop entries too, but then reads the whole folder each time that it adds
    one: 0.2 s with a thousand entries, longer than compiling most programs.
    """
    marker = folder / _TRIMMED
    # Another process may trim at the same time, and entries may be another user's.
    with contextlib.suppress(OSError):
        if time.time() - marker.stat().st_mtime < _SECONDS_BETWEEN_TRIMS:
            return
    with contextlib.suppress(OSError):
        marker.touch()
    used = []
    for path in folder.glob(_ENTRIES):
        with contextlib.suppress(OSError):
            found = path.stat()
            used.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= MAX_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
