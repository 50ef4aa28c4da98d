"""When each token of each request is sent, and which requests go wrong. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sglang_moe_opt.fields import FieldError

FAULTS = ("http500", "broken", "cut", "stall", "slow", "error_event")
SLOWER = 10


@dataclass(frozen=True)
class Schedule:
    """Request n has its first token after `ttft_ms[n % len]`, and the gap before its k-th next `gap_ms[(n + k) % len]`.

    Times are in milliseconds.
    """

    ttft_ms: tuple[float, ...] = (50.0,)
    gap_ms: tuple[float, ...] = (20.0,)

    def gaps(self, request: int, tokens: int) -> list[float]:
        """The times between the tokens of a request."""
        return [self.gap_ms[(request + k) % len(self.gap_ms)] for k in range(1, tokens)]

    def arrivals(self, request: int, tokens: int) -> list[float]:
        """When each token of a request is sent, counted from its arrival."""
        return list(accumulate([self.ttft_ms[request % len(self.ttft_ms)], *self.gaps(request, tokens)]))


@dataclass(frozen=True)
class Fault:
    """What happens to every `every`-th request.

    Kinds: `http500` (refused), `broken` (an event cut in its middle, then the connection), `cut` (the connection ends
    without an end of the stream), `stall` (silence for ever), `slow` (gaps ten times as long), `error_event` (the
    stream reports an error). `http500` and `slow` hit from the beginning, the others after half of the tokens.
    """

    kind: str
    every: int

    def hits(self, request: int) -> bool:
        """Requests count from 0; the first that is hit is number every - 1."""
        return request % self.every == self.every - 1

    @classmethod
    def parse(cls, text: str) -> Fault:
        """`http500:10`. Raises FieldError."""
        kind, _, every = text.partition(":")
        if kind not in FAULTS or not every.isdigit() or int(every) < 1:
            raise FieldError("--fault", text, f"KIND:EVERY with KIND one of {', '.join(FAULTS)}")
        return cls(kind, int(every))


def parse_times(option: str, text: str) -> tuple[float, ...]:
    """Milliseconds, comma-separated. Raises FieldError."""
    try:
        times = tuple(float(part) for part in text.split(","))
    except ValueError:
        times = ()
    if not times or not all(0 <= time < 1e6 for time in times):
        raise FieldError(option, text, "milliseconds, comma-separated")
    return times


def fault_of(faults: Sequence[Fault], request: int) -> str | None:
    return next((fault.kind for fault in faults if fault.hits(request)), None)
