"""Command-line values that several measurements take."""

from __future__ import annotations

import typer


def numbers(option: str, text: str, most: int) -> list[int]:
    """Whole numbers from 1 to ``most``, comma-separated.

    Raises:
        typer.BadParameter: naming the option, the value and what is allowed.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= most for part in parts):
        raise typer.BadParameter(f"{option}: got {text!r}, allowed: whole numbers from 1 to {most}, comma-separated")
    return [int(part) for part in parts]
