"""Pages of HTML that need no other file: styles and pictures are inside."""

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1d2530;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
.path { color: #5b6675; margin: 2px 0 20px; overflow-wrap: anywhere; }
.badge { display: inline-block; border-radius: 10px; padding: 1px 10px;
  font-size: 13px; vertical-align: 4px; color: white; background: #6b7684; }
.completed { background: #2a7d46; } .running { background: #1f6fb5; }
.interrupted { background: #946200; } .failed { background: #b3323a; }
section { background: white; border: 1px solid #dde1e6; border-radius: 8px;
  padding: 16px 18px; margin: 0 0 18px; }
.pair { display: grid; gap: 0 18px; align-items: stretch;
  grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
td, th { text-align: left; padding: 3px 18px 3px 0; vertical-align: top; }
th { color: #5b6675; font-weight: 600; white-space: nowrap; }
tr + tr td, tr + tr th { border-top: 1px solid #eceff2; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.narrow td { overflow-wrap: normal; white-space: nowrap; }
.pictures { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(430px, 100%), 1fr)); }
.pictures img { width: 100%; max-width: 640px; display: block; margin: 0 auto; }
.pictures + .pictures { margin-top: 14px; }
.wide { grid-template-columns: 1fr; } .wide img { max-width: 1120px; }
pre { margin: 0; overflow-x: auto; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono",
  monospace; }
.bar { display: flex; height: 22px; border-radius: 5px; overflow: hidden;
  margin-bottom: 10px; }
.bar div { min-width: 1px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 8px; }
.note { color: #5b6675; font-size: 13px; margin: 12px 0 0; }
"""
_COLORS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#b8bec6")


class Picture(NamedTuple):
    """A picture in a page."""

    title: str  # for readers who do not see it
    png: bytes


class Section(NamedTuple):
    """A part of a page: a title above HTML."""

    title: str
    body: str


def page(
    title: str, path: str, status: str, sections: Sequence[Section | list[Section]]
) -> str:
    """Return a page.

    Args:
        title: of the page.
        path: what it reports on.
        status: of the run; no badge if empty.
        sections: from top to bottom; those of a list stand side by side if there is
            room. Sections without a body are left out.

    Example:
        >>> from fngrad.commands.pages import Section, page, preformatted
        >>> text = page("a", "runs/a", "", [Section("notes", preformatted("x < y"))])
        >>> "x &lt; y" in text, "http" in text
        (True, False)
    """
    badge = f' <span class="badge {status}">{html.escape(status)}</span>'
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>",
        f"<body><main><h1>{html.escape(title)}{badge if status else ''}</h1>",
        f'<div class="path">{html.escape(path)}</div>',
    ]
    for each in sections:
        if isinstance(each, list):
            inside = "\n".join(_section(section) for section in each)
            parts.append(f'<div class="pair">{inside}</div>' if inside.strip() else "")
        else:
            parts.append(_section(each))
    return "\n".join([*filter(None, parts), "</main></body></html>\n"])


def pairs(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of names and values; empty if there are none."""
    cells = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    ]
    return f"<table>{''.join(cells)}</table>" if cells else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a head, which scrolls where it is too wide."""
    if not rows:
        return ""
    lines = [_row(head, "th"), *(_row(row, "td") for row in rows)]
    inside = f'<table class="narrow">{"".join(lines)}</table>'
    return f'<div class="scroll">{inside}</div>'


def preformatted(text: str) -> str:
    """Return a text in the widths in which it is aligned."""
    return f"<pre>{html.escape(text)}</pre>" if text else ""


def note(text: str) -> str:
    """Return a small line of text."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def pictures(found: Sequence[Picture], *, is_wide: bool = False) -> str:
    """Return pictures side by side, or one below the other if they are wide."""
    images = [
        f'<img alt="{html.escape(each.title)}" '
        f'src="data:image/png;base64,{base64.b64encode(each.png).decode()}">'
        for each in found
    ]
    kind = "pictures wide" if is_wide else "pictures"
    return f'<div class="{kind}">{"".join(images)}</div>' if images else ""


def shares(parts: Sequence[tuple[str, float, str]]) -> str:
    """Return a bar of shares with its legend.

    Args:
        parts: (name, amount, text of the amount) each.
    """
    total = sum(amount for _, amount, _ in parts)
    if not total:
        return ""
    bar, rows = [], []
    for place, (name, amount, text) in enumerate(parts):
        color = _COLORS[place % len(_COLORS)]
        share = 100 * amount / total
        bar.append(f'<div style="width:{share:.2f}%;background:{color}"></div>')
        swatch = f'<span class="swatch" style="background:{color}"></span>'
        cells = f"<td>{html.escape(text)}</td><td>{share:.0f} %</td>"
        rows.append(f"<tr><th>{swatch}{html.escape(name)}</th>{cells}</tr>")
    return f'<div class="bar">{"".join(bar)}</div><table>{"".join(rows)}</table>'


def _section(section: Section) -> str:
    if not section.body:
        return ""
    title = html.escape(section.title)
    return f"<section><h2>{title}</h2>{section.body}</section>"


def _row(cells: Sequence[str], kind: str) -> str:
    return f"<tr>{''.join(f'<{kind}>{html.escape(c)}</{kind}>' for c in cells)}</tr>"
