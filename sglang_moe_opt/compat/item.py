"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["hook", "import", "attribute", "field", "flag", "variable", "patch"]
State = Literal["unchanged", "changed", "moved", "gone"]


@dataclass(frozen=True)
class Item:
    """One thing that we rely on.

    Attributes:
        kind: what it is to us.
        name: dotted where it has a place.
        state: against the record.
        detail: what changed, or where it is now; empty where nothing did.
        reason: what we need it for, of a hook.
    """

    kind: Kind
    name: str
    state: State
    detail: str
    reason: str
