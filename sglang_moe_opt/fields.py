"""Checks of values that come from outside: one error that names field, value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

_SHOWN: Final = 80  # characters of a bad value repeated in an error


def show(value: object) -> str:
    """`value` as one short printable ASCII line, at a cost that does not grow with its size."""
    return _clip(_show(value, depth=2))


def show_key(key: object) -> str:
    """A key of an object as a part of a field's name, quoted only where nothing would be seen of it."""
    return (show(key)[1:-1] if isinstance(key, str) else str(key)) or "''"


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _show(value: object, depth: int) -> str:
    if isinstance(value, str):
        return _clip(ascii(str(value[:_SHOWN])))
    if isinstance(value, int) and value.bit_length() > 256:  # repr of a huge int is slow, and an error from 4300 digits
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, dict):
        if depth == 0 or len(value) > 4:
            return f"an object of {len(value)} keys"
        return "{" + ", ".join(f"{_show(k, 0)}: {_show(v, depth - 1)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        if depth == 0 or len(value) > 8:
            return f"a list of {len(value)} items"
        return "[" + ", ".join(_show(v, depth - 1) for v in value) + "]"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


class FieldError(ValueError):
    """A value that a named field cannot take: `field`, `value`, and `allowed`, what would be right."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: got {show(value)}, allowed: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.allowed)


def is_int(value: object) -> TypeGuard[int]:
    """An integer that is not a bool (JSON's `true` is no number)."""
    return isinstance(value, int) and not isinstance(value, bool)


def join_field(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def is_number(value: object) -> TypeGuard[int | float]:
    """A finite number that is not a bool."""
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


def check_keys(value: Mapping[Any, Any], field: str, known: Sequence[str]) -> None:
    """Raise FieldError naming the first key of `value` that is not known."""
    for key in value:
        if not isinstance(key, str) or key not in known:
            raise FieldError(field, key, "the keys " + ", ".join(known))
