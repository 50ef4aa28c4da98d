"""What one point asks of the client's processes: one JSON object, the same for plain Locust and for a sweep."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from loadtest.load import Load


class PointSpec(BaseModel):
    """A point of one process.

    Attributes:
        url, api, model: where and how to ask.
        load: label of the load of all processes together.
        part, parts: which of so many processes this is; users and arrivals are dealt out in turn.
        seconds: users begin no request later than this; every user makes at least one.
        max_seconds: whatever still runs then is cut off.
        requests: of the whole point, in place of `seconds`.
        ramp_s: the users begin evenly over this time.
        hints: label of each profile with its hint and its share of the users.
        trace: file of the arrivals, where the load is a trace.
        headers: sent with every request; never written down.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    api: str
    model: str
    load: str
    part: int = 0
    parts: int = 1
    seconds: float
    max_seconds: float
    requests: int | None = None
    ramp_s: float = 0.0
    silence_s: float = 60.0
    hints: dict[str, tuple[Any, float]]
    prompts: str
    data_dir: str | None = None
    vocab_size: int | None = None
    output_len: int
    max_input: int = 1 << 20
    seed: int = 0
    trace: str | None = None
    headers: dict[str, str] = Field(default_factory=dict, repr=False)

    @property
    def parsed_load(self) -> Load:
        return Load.parse(self.load)

    @property
    def users(self) -> int:
        """Of this process."""
        total = self.parsed_load.concurrency
        return 1 if total is None else len(range(self.part, total, self.parts))


class PointResult(BaseModel):
    """What a process says of a point; times count from the point's beginning.

    Attributes:
        began: when its last user sent its first request; None where there was none.
        ended: when its first user had nothing more to do.
        cut_off: requests that still ran at the time limit.
        cpu_s, wall_s: CPU and wall time from beginning to end.
        lag_ms: 99th percentile of how late its event loop was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    began: float | None
    ended: float
    cut_off: int
    cpu_s: float
    wall_s: float
    lag_ms: float
