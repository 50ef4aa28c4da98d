"""Values of options that several commands read the same way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from sglang_moe_opt.fields import FieldError

T = TypeVar("T", int, float)


def numbers(option: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """The numbers between commas, repeats included. Raises FieldError for `option`."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise FieldError(option, text, f"{what} separated by commas") from None


def number_or_word(text: str) -> float | str:
    """A value of `rescale`."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_hint(text: str, option: str = "hint") -> object:
    """A hint as JSON, or a profile's name as it is. Raises FieldError for `option`."""
    if not text.lstrip().startswith(("{", "[", '"')):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise FieldError(option, text, "JSON, or a profile's name") from None
