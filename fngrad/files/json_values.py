"""Values as strict JSON, which has no NaN and no infinity.

They are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which
``float`` reads.
"""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from fngrad.files.atomic_writes import write_atomically

NON_FINITE = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}


def to_json(value: Any, name: str = "") -> Any:
    """Return a value in JSON's types.

    Args:
        value: None, bool, int, float, str, a path, a NumPy or JAX scalar, or a
            dataclass, NamedTuple, dict (with string keys), list or tuple of these.
        name: of the value in an error; a nested value adds its keys after dots.

    Raises:
        TypeError: if the value is anything else; its name is given.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else _name_non_finite(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "dtype") and hasattr(value, "item") and value.ndim == 0:
        item = value.item()
        if not hasattr(item, "dtype"):  # the item of a longdouble is a longdouble
            return to_json(item, name)
    fields = _fields(value, name)
    if fields is not None:
        return {key: to_json(item, _below(name, key)) for key, item in fields.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, _below(name, i)) for i, item in enumerate(value)]
    raise TypeError(
        "need a number, string, path, dataclass, NamedTuple, dict or list, "
        f"got {type(value).__name__} at {name!r}"
    )


def from_json_number(value: Any) -> Any:
    """Return the float that a name of `NON_FINITE` means; any other value unchanged."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def write_json(path: Path, value: Any) -> None:
    """Write a value that `to_json` returned, indented, in one atomic step."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _name_non_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _below(name: str, key: str | int) -> str:
    return f"{name}.{key}" if name else str(key)


def _fields(value: Any, name: str) -> dict[str, Any] | None:
    """Return the fields of a dataclass, NamedTuple or dict; None for another value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(value, dict):
        return None
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"need string keys, got {key!r} at {name!r}")
    return value
