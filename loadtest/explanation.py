"""What an explanation of a load test says: what the decode steps touched, how fast, and what bounds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sglang_moe_opt.perfmodel.achieved import Achieved
from sglang_moe_opt.perfmodel.hardware import Hardware
from sglang_moe_opt.perfmodel.parallel import Parallelism
from sglang_moe_opt.perfmodel.parameters import Fitted

if TYPE_CHECKING:
    from loadtest.load import Load

PROBED: Final = "probed"
"""Name of a hardware whose ceilings were measured beside each point."""


@dataclass(frozen=True)
class Basis:
    """What a reader knows of the servers' machine.

    Attributes:
        hardware: its ceilings, in place of those that were probed beside the points.
        split: devices that share the model.
        parameters: how much of the ceilings the engine reaches; None takes those of the package.
    """

    hardware: Hardware | None = None
    split: Parallelism = field(default_factory=Parallelism)
    parameters: Fitted | None = None


@dataclass(frozen=True)
class RunBasis:
    """What one run's explanation stands on; hardware is None where nothing is known of the machine.

    is_probed: its ceilings were measured beside each point, and those of `hardware` are their medians.
    """

    hardware: Hardware | None
    split: Parallelism
    fitted: Fitted
    is_probed: bool


@dataclass(frozen=True)
class ExplainedPoint:
    """An arm under a load, medians of its rounds. Bytes, operations and ceilings are of one device.

    Attributes:
        batch: sequences of a step.
        kept: experts of a layer, mean.
        is_counted: the server counted the distinct experts; else they are expected ones.
        measured_tok_s, predicted_tok_s: total tokens per second.
        measured_speedup, predicted_speedup: over the run's first arm; None for itself.
        bytes_ratio, flops_ratio: of a step over the first arm's under the same load.
        before: the next smaller load.
        grown: step time, bytes and operations over those at that load.
    """

    arm: str
    load: Load
    batch: float
    kept: float
    is_counted: bool
    achieved: Achieved
    measured_tok_s: float
    measured_speedup: float | None = None
    predicted_tok_s: float | None = None
    predicted_speedup: float | None = None
    bytes_ratio: float | None = None
    flops_ratio: float | None = None
    before: Load | None = None
    grown: tuple[float, float, float] | None = None

    @property
    def tok_s_error(self) -> float | None:
        """Predicted over measured, less 1."""
        return None if self.predicted_tok_s is None else self.predicted_tok_s / self.measured_tok_s - 1

    @property
    def speedup_error(self) -> float | None:
        if self.predicted_speedup is None or self.measured_speedup is None:
            return None
        return self.predicted_speedup / self.measured_speedup - 1


@dataclass(frozen=True)
class Explanation:
    """Of all runs together.

    Attributes:
        points: arm by arm, from small loads to large.
        knees: of each arm, the load from which on computing takes longer than reading; None where it does not.
        bases: of each run whose model is known.
        notes: what is missing and why, a line each.
    """

    points: tuple[ExplainedPoint, ...] = ()
    knees: Mapping[str, float | None] = field(default_factory=dict)
    bases: Mapping[str, RunBasis] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def point(self, arm: str, load: Load) -> ExplainedPoint | None:
        return next((one for one in self.points if one.arm == arm and one.load == load), None)
