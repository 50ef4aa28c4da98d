"""What a metric is: a small declared object that derives one number from one measured point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from loadtest.folder import PointFile
from loadtest.load import Load
from loadtest.record import Record
from sglang_moe_opt.model_shape import MoEShape


@dataclass(frozen=True)
class Measurement:
    """Everything that is known about one point.

    Attributes:
        point: window, server, client.
        records: all requests of the point, failed ones too.
        ramp_s: time in which the users were started; requests sent earlier than that met fewer neighbours.
        goodput_ms: bounds that a good request meets: ttft, tpot, e2e in milliseconds.
        shape: of the model; None where its config is not known.
        mean_na: routed experts per token; None where that is not known.
        kept: experts of each MoE layer of a pruned server; None where it has all.
    """

    point: PointFile
    records: Sequence[Record]
    ramp_s: float = 0.0
    goodput_ms: Mapping[str, float] = field(default_factory=dict)
    shape: MoEShape | None = None
    mean_na: float | None = None
    kept: Sequence[int] | None = None

    @property
    def load(self) -> Load:
        return Load.parse(self.point.load)

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.point.end - self.point.begin

    @cached_property
    def answered(self) -> list[Record]:
        """Whole answers to requests that were sent when the load was whole."""
        return [r for r in self.records if r.ok and r.start >= self.ramp_s]

    @cached_property
    def failed(self) -> list[Record]:
        return [r for r in self.records if r.failed]

    @cached_property
    def tokens_in_window(self) -> float:
        """Output tokens that arrived in the window; a chunk carries its request's mean number of tokens."""
        total = 0.0
        for r in self.records:
            if not r.arrivals or not r.output_tokens:
                continue
            at = np.asarray(r.arrivals) + r.start
            inside = np.count_nonzero((at > self.point.begin) & (at <= self.point.end))
            total += float(inside) * r.output_tokens / len(r.arrivals)
        return total

    @cached_property
    def prompts_in_window(self) -> float:
        """Prompt tokens whose first answer arrived in the window."""
        return float(
            sum(
                r.input_tokens
                for r in self.records
                if r.ttft is not None and self.point.begin < r.start + r.ttft <= self.point.end
            )
        )


@dataclass(frozen=True)
class Metric:
    """One number of a point.

    Attributes:
        tag: its name in files.
        header: its name in tables.
        unit: of the number; empty for counts and shares.
        derive: from a measurement to the number; None where it cannot be known.
        better: which way is better, where one is.
        decimals: shown in tables.
        about: how it is derived, in one sentence.
    """

    tag: str
    header: str
    unit: str
    derive: Callable[[Measurement], float | None]
    better: Literal["more", "less", ""] = ""
    decimals: int = 1
    about: str = ""


def percentile(values: Sequence[float], q: float) -> float | None:
    """None of nothing."""
    return float(np.percentile(values, q)) if len(values) else None
