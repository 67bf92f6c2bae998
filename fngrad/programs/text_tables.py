"""Tables of text in aligned columns."""

from collections.abc import Sequence
from typing import Any


def short_text(value: Any) -> str:
    """Return a float with four digits, anything else as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """Return rows of text in columns, two spaces apart.

    Args:
        rows: the cells. The last cell of a row that is shorter than the first row
            may be wider than its column.
        left: how many columns are aligned to the left, the others to the right;
            ``None`` means all.

    Example:
        >>> from fngrad.programs.text_tables import table
        >>> rows = [["name", "loss"], ["sgd", "0.5"], ["adam", "0.25"]]
        >>> print(table(rows, left=1))
        name  loss
        sgd    0.5
        adam  0.25
        >>> rows = [["name", "loss", "steps"], ["sgd", "0.5", "8"], ["total", "1 rule"]]
        >>> print(table(rows))
        name   loss  steps
        sgd    0.5   8
        total  1 rule
    """
    count = len(rows[0])
    whole = [row if len(row) == count else row[:-1] for row in rows]
    widths = [max(len(row[i]) for row in whole if i < len(row)) for i in range(count)]
    left = count if left is None else left
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    )
