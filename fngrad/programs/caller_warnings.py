"""Warnings that show the caller's line, however deep in the package they come from."""

import contextlib
import functools
import inspect
import warnings
from types import FrameType

import jax

import fngrad.types as types

_FOLDERS = (
    types.__file__.removesuffix("types.py"),
    str(jax.__file__).removesuffix("__init__.py"),
)
_MODULES = {contextlib.__file__, functools.__file__}


def is_silent() -> bool:
    """Return whether another process says what all would say: the first one does."""
    return jax.distributed.is_initialized() and jax.process_index() > 0


def warn(message: str) -> None:
    """Warn at the innermost line outside of fngrad and JAX, as a `UserWarning`.

    Of several processes the first one warns, as all would warn of the same.

    Lines of the modules that call functions for them, such as `contextlib`, are left
    out too. A thread of the package has no other lines, so there it is the outermost.
    """
    if is_silent():
        return
    frame = inspect.currentframe()
    assert frame is not None
    while _is_internal(frame) and frame.f_back is not None:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _is_internal(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file in _MODULES or file.startswith(_FOLDERS)
