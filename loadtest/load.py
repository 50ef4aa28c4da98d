"""What load a point puts on a server: so many requests at a time, so many a second, or a recorded trace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_moe_opt.fields import FieldError

PAPER_LEVELS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 784)
"""Concurrencies of the paper's load tests."""


@dataclass(frozen=True, order=True)
class Load:
    """One load.

    Attributes:
        kind: `closed` (value requests at a time), `poisson` (value requests a second, whatever is in flight) or
            `trace` (arrivals as recorded, value times as fast).
        value: see kind.
    """

    kind: str
    value: float

    @property
    def label(self) -> str:
        """As reports and file names call it: `c16`, `rate4`, `trace0.5`."""
        return f"{ {'closed': 'c', 'poisson': 'rate', 'trace': 'trace'}[self.kind] }{self.value:g}"

    @property
    def is_open(self) -> bool:
        return self.kind != "closed"

    @property
    def concurrency(self) -> int | None:
        """Requests at a time, where that is what is held."""
        return None if self.is_open else int(self.value)

    @classmethod
    def parse(cls, label: str) -> Load:
        """The load of a label. Raises FieldError."""
        found = re.fullmatch(r"(c|rate|trace)(\d+(?:\.\d+)?)", label)
        if not found or not float(found[2]):
            raise FieldError("load", label, "c16, rate4 or trace0.5")
        return cls({"c": "closed", "rate": "poisson", "trace": "trace"}[found[1]], float(found[2]))


def parse_levels(option: str, text: str, kind: str) -> list[Load]:
    """Loads of one kind from numbers separated by commas, each once, in order.

    Raises:
        FieldError: naming the option, the value and what is allowed.
    """
    allowed = "whole numbers from 1 to 4096" if kind == "closed" else "numbers from 0.001 to 100000"
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = 0.0
        whole = kind != "closed" or (value.is_integer() and value <= 4096)
        if not (0.001 <= value <= 1e5 and whole):
            raise FieldError(option, part.strip(), f"{allowed}, comma-separated")
        values.append(value)
    return [Load(kind, value) for value in dict.fromkeys(values)]


def in_turns(arms: Sequence[str], loads: Sequence[Load], rounds: int) -> list[tuple[int, Load, str]]:
    """(round, load, arm) in the order of measuring: A B, then B A, so that a drift of the machine cancels."""
    return [
        (turn, load, arm)
        for turn in range(1, rounds + 1)
        for load in loads
        for arm in (arms if turn % 2 else tuple(reversed(arms)))
    ]
