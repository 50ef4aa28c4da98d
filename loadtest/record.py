"""What the client saw of one request: when its tokens arrived, how many there were, or why it failed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from sglang_moe_opt.fields import FieldError

CUT_OFF = "cut off"
"""What ended a request that was still running when its point's time was over: nobody's failure."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are in seconds; `start` counts from the beginning of its point.

    Attributes:
        profile: label of the hint that it ran under.
        start: when it was sent.
        arrivals: when each chunk with tokens arrived, counted from `start`.
        end: when the stream ended, or the request failed, counted from `start`.
        input_tokens, output_tokens: by the server's usage; of a failed request what is known.
        error: why it failed, in few words that are alike for failures of one kind; None where it was answered whole.
    """

    profile: str
    start: float
    arrivals: tuple[float, ...]
    end: float
    input_tokens: int
    output_tokens: int
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def failed(self) -> bool:
        return self.error is not None and self.error != CUT_OFF

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return self.arrivals[0] if self.arrivals else None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None with fewer than two."""
        if self.output_tokens < 2 or not self.arrivals:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: the times between chunks."""
        return [b - a for a, b in pairwise(self.arrivals)]

    @property
    def e2e(self) -> float:
        """Until the last token."""
        return self.arrivals[-1] if self.arrivals else self.end


def to_lines(records: Iterable[Record]) -> str:
    """JSON, one line each; times rounded to 10 microseconds."""
    return "".join(json.dumps(_rounded(record)) + "\n" for record in records)


def read_lines(file: Path) -> Iterator[Record]:
    """Raises FieldError naming file and line where one is no record."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line)
            yield Record(**{**values, "arrivals": tuple(values["arrivals"])})
        except (ValueError, TypeError, KeyError):
            raise FieldError(f"{file}: line {number}", line[:80], "a request's record in JSON") from None


def _rounded(record: Record) -> dict[str, object]:
    values = asdict(record)
    values |= {name: round(values[name], 5) for name in ("start", "end")}
    values["arrivals"] = [round(at, 5) for at in record.arrivals]
    return values
