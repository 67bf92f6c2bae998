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
