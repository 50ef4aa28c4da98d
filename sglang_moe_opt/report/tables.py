"""Tables that sort on a click: by `data-value` where a cell has one, else by its text."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """Scrolls by itself where it is wider than the page."""
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def head(text: str, kind: str = "", small: str = "", title: str = "") -> str:
    """The head of a column; `small` is HTML below it, `title` is shown on hover."""
    below = f"<small>{small}</small>" if small else ""
    hover = f' title="{escape(title)}"' if title else ""
    return f'<th scope="col" class="{kind}"{hover}><button type="button">{escape(text)}</button>{below}</th>'
