"""How commands write values: plain text of fixed widths, without color codes."""

import datetime
import json
from typing import Any

from fngrad.files.json_values import to_json
from fngrad.programs.text_tables import short_text

_LONGEST = 28  # characters of a value in a table


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units; "-" if it is unknown.

    Example:
        >>> from fngrad.commands.texts import duration
        >>> duration(7.2), duration(754), duration(8000), duration(200_000)
        ('7s', '12m34s', '2h13m', '2d07h')
    """
    if seconds is None:
        return "-"
    whole = max(int(seconds), 0)
    for name, size, smaller, unit in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size}{name}{whole % size // unit:02d}{smaller}"
    return f"{whole}s"


def moment(text: str) -> str:
    """Return a time in ISO 8601 as local time, to the minute; "-" if there is none."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return "-"
    return found.astimezone().strftime("%Y-%m-%d %H:%M")


def cell(value: Any) -> str:
    """Return a value for a table, shortened; "-" for None.

    Example:
        >>> from fngrad.commands.texts import cell
        >>> cell(0.125), cell(None), cell([64, 10])
        ('0.125', '-', '[64, 10]')
    """
    if value is None:
        return "-"
    text = short_text(value).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def json_text(value: Any) -> str:
    """Return a value as strict JSON, indented; see `fngrad.files.json_values`."""
    return json.dumps(to_json(value), indent=2, allow_nan=False)
