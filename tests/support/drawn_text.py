"""What matplotlib shows for a text that must not be read as mathematics."""

from typing import Any

from fngrad.programs.optional_imports import import_extra


def literal(text: Any) -> str:
    """Return the characters that a text shows; fail if it is drawn as mathematics."""
    shown = text.get_text()
    if not text.get_parse_math():
        return shown
    assert not import_extra("matplotlib.cbook", "plot").is_math_text(shown)
    return shown.replace(r"\$", "$")
