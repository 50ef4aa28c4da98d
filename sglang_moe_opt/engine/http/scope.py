"""One HTTP request under way: where it came from, which policy it met, and what was admitted for it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sglang_moe_opt.engine.http.live import InFlight, Key, LiveSchedules
from sglang_moe_opt.hints import ResolvedHint

if TYPE_CHECKING:
    from sglang_moe_opt.engine.http.resolver import Resolver

HEADER = b"x-moe-skip"
MEAN_NA_HEADER = b"x-moe-skip-mean-na"


@dataclass
class RequestScope:
    """One HTTP request.

    Attributes:
        header: its ``x-moe-skip``.
        client: address that it came from.
        resolver: the policy when it arrived; it sees no other, also where the policy is reloaded meanwhile.
        hints: what was admitted, by profile (several where the body is a batch).
    """

    header: str | None
    client: str = ""
    resolver: Resolver | None = None
    hints: dict[str, ResolvedHint] = field(default_factory=dict)
    held: list[tuple[LiveSchedules, Key]] = field(default_factory=list)
    counted: list[tuple[InFlight, ResolvedHint]] = field(default_factory=list)

    def admit(self, live: LiveSchedules, hint: ResolvedHint) -> None:
        """Remember the schedule until the response is out. Raises HintError (429) where it is one too many."""
        key = live.acquire(hint, self.client)
        if key is not None:
            self.held.append((live, key))
        live.in_flight.add(hint)
        self.counted.append((live.in_flight, hint))
        self.hints[hint.profile] = hint

    def release(self) -> list[LiveSchedules]:
        """Let go of the schedules; returns the counters that changed."""
        changed = [live for live, _ in self.held]
        for live, key in self.held:
            live.release(key)
        for in_flight, hint in self.counted:
            in_flight.remove(hint)
        self.held.clear()
        self.counted.clear()
        return changed[:1]

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        """What the response says of its schedules."""
        if not self.hints:
            return []
        means = (hint.mean_na for hint in self.hints.values())
        texts = (f"{m:g}" if isinstance(m, float) else f"{m['prefill']:g}/{m['decode']:g}" for m in means)
        return [(HEADER, ",".join(self.hints).encode()), (MEAN_NA_HEADER, ",".join(texts).encode())]


current: ContextVar[RequestScope | None] = ContextVar("moe_opt_request", default=None)


def current_request() -> RequestScope | None:
    """The HTTP request under way; None outside HTTP (the Python engine)."""
    return current.get()
