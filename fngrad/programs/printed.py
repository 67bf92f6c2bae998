"""What a value shows of itself: as text, as HTML in a notebook, in a checkpoint.

Text for people may change from version to version, and shows a summary. What is
recorded in a checkpoint must not change, so there a tuple shows its fields.
"""

import contextlib
import contextvars
import html
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_AS_FIELDS = contextvars.ContextVar("as_fields", default=False)


def shown(value: Any, write: Callable[[Any], str]) -> str:
    """Return the ``repr`` of a named tuple: ``write(value)``, which may fail.

    Args:
        value: a NamedTuple.
        write: makes the text for people. If it raises, the text is the type's name:
            a ``repr`` that raises hides the error for which it was called.
    """
    if _AS_FIELDS.get():
        return _fields(value)
    try:
        return write(value)
    except Exception:
        return f"{type(value).__name__}(...)"


def recorded(value: Any) -> str:
    """Return the text of a static value for a record that later versions compare.

    Named tuples show their fields, and functions do not show their addresses.

    Example:
        >>> import fngrad.layers as layers
        >>> from fngrad.programs.printed import recorded
        >>> print(recorded(layers.Layer(len, abs)))
        Layer(init=<function len>, apply=<built-in function abs>)
    """
    with _as_fields():
        return _ADDRESS.sub("", repr(value))


def scalar_text(x: Any) -> str:
    """Write a scalar as a number if its value is there, else its dtype and shape.

    Traced, donated and abstract arrays, those of other processes and those with axes
    have no value to show.
    """
    is_array = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    is_here = is_array and not x.is_deleted() and x.is_fully_addressable
    if (is_here or isinstance(x, np.ndarray | np.generic)) and x.shape == ():
        value = x.item()
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x)


def preformatted(*texts: str) -> str:
    """Return texts as HTML, escaped, in the widths in which they are aligned."""
    lines = html.escape("\n".join(texts))
    return f'<pre style="line-height: 1.3">{lines}</pre>'


@contextlib.contextmanager
def _as_fields() -> Iterator[None]:
    token = _AS_FIELDS.set(True)
    try:
        yield
    finally:
        _AS_FIELDS.reset(token)


def _fields(value: Any) -> str:
    """Return what a NamedTuple shows by itself."""
    pairs = zip(value._fields, value, strict=True)
    return f"{type(value).__name__}({', '.join(f'{k}={v!r}' for k, v in pairs)})"
