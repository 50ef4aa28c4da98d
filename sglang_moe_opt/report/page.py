"""A self-contained page that opens from a file, without network, in light and dark; and the lists that pages share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any


def page(title: str, body: str, style: str = "") -> str:
    """The whole document: `body` below the heading, `style` after the common one."""
    common, script = (Path(__file__).with_name(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title><style>
{common}{style}</style></head><body><main>
<h1>{escape(title)}</h1>
{body}
</main><div id="tip" hidden></div><script>
{script}</script></body></html>
"""


def headlines(lines: Iterable[str]) -> str:
    """What to remember, in a box; nothing where there is nothing to say."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="headlines">{items}</ul>' if items else ""


def notes(lines: Iterable[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def facts(title: str, values: Mapping[str, str]) -> str:
    """A box with a list of what is known; the values are HTML."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in values.items())
    return f"<details open><summary>{escape(title)}</summary><dl>{rows}</dl></details>"


def folded(summary: str, html: str) -> str:
    """Details that a reader may open."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def pairs(values: Mapping[str, Any]) -> str:
    """`name value, name value` as text for a page."""
    return escape(", ".join(f"{name} {value}" for name, value in values.items()))
