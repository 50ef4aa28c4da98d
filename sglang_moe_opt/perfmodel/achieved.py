"""What a measured decode step touched, how fast, what it should have taken, and so what it was bound by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sglang_moe_opt.perfmodel.curve import Curve
from sglang_moe_opt.perfmodel.model import ServedModel
from sglang_moe_opt.perfmodel.parallel import Parallelism
from sglang_moe_opt.perfmodel.parameters import Parameters
from sglang_moe_opt.perfmodel.step import REGIMES, Regime, Setup, StepTime, step_time
from sglang_moe_opt.perfmodel.work import Batch, distinct_by_layer, step_parts

Bound = Regime | Literal["unexplained"]
UNEXPLAINED: Final[Bound] = "unexplained"


@dataclass(frozen=True)
class Touched:
    """One decode step on one device.

    Attributes:
        shared_bytes: weights that every token uses: attention, dense and shared layers, routers, head.
        expert_bytes: weights of the distinct routed experts.
        cache_bytes: of all sequences.
        flops: floating-point operations, a multiplication and an addition being two.
        distinct_experts: of one MoE layer, mean.
    """

    shared_bytes: float
    expert_bytes: float
    cache_bytes: float
    flops: float
    distinct_experts: float

    @property
    def total_bytes(self) -> float:
        return self.shared_bytes + self.expert_bytes + self.cache_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.total_bytes


def touched(model: ServedModel, curve: Curve, split: Parallelism, batch: Batch, skew: float = 0.0) -> Touched:
    """Weights and cache that a step must read, each byte once, and its operations. Rows of hidden states, which a cache
    may keep, do not count. `batch.distinct` says how many experts, where the server counted them."""
    parts = {part.name: part for part in step_parts(model, curve, split, batch, skew)}
    layers = distinct_by_layer(curve, batch, skew)
    distinct = sum(mean for _, mean, _, _ in layers)
    return Touched(
        shared_bytes=sum(part.moved_bytes for name, part in parts.items() if name not in ("experts", "cache")),
        expert_bytes=distinct * model.shape.expert_bytes / split.tp,
        cache_bytes=parts["cache"].moved_bytes,
        flops=sum(part.flops for part in parts.values()),
        distinct_experts=distinct / len(layers),
    )


@dataclass(frozen=True)
class Achieved:
    """A measured step beside its least work and beside what the cost model expects of just this batch.

    Attributes:
        step_s: measured.
        expected: of the cost model, at the machine's ceilings; None where these are not known.
        bandwidth_bytes_s, flops_s: those ceilings.
    """

    work: Touched
    step_s: float
    expected: StepTime | None = None
    bandwidth_bytes_s: float | None = None
    flops_s: float | None = None

    @property
    def bytes_s(self) -> float:
        return self.work.total_bytes / self.step_s

    @property
    def flop_s(self) -> float:
        return self.work.flops / self.step_s

    @property
    def bandwidth_share(self) -> float | None:
        """Achieved bytes/s over what the machine can read."""
        return None if self.bandwidth_bytes_s is None else self.bytes_s / self.bandwidth_bytes_s

    @property
    def compute_share(self) -> float | None:
        """Achieved FLOP/s over what the machine can compute."""
        return None if self.flops_s is None else self.flop_s / self.flops_s

    @property
    def rest_s(self) -> float | None:
        """Measured time that the model does not expect; below 0 where the step was faster."""
        return None if self.expected is None else self.step_s - self.expected.total_s

    @property
    def bound(self) -> Bound | None:
        """What most of the step is spent on: the largest of the expected times, unless what they leave is larger."""
        if self.expected is None or self.rest_s is None:
            return None
        regime = self.expected.regime
        return UNEXPLAINED if self.rest_s > getattr(self.expected, f"{regime}_s") else regime

    @property
    def shares(self) -> dict[str, float] | None:
        """Share of the measured step by what is expected to take it; the rest, which may be below 0, is unexplained."""
        if self.expected is None or self.rest_s is None:
            return None
        times = {name: getattr(self.expected, f"{name}_s") for name in REGIMES} | {UNEXPLAINED: self.rest_s}
        return {name: seconds / self.step_s for name, seconds in times.items()}


def achieve(setup: Setup, curve: Curve, parameters: Parameters, batch: Batch, step_s: float) -> Achieved:
    """A measured decode step beside the ceilings of its machine."""
    work = touched(setup.model, curve, setup.split, batch, parameters.routing_skew)
    expected = step_time(setup, curve, parameters, batch)
    hardware = setup.hardware
    peak = hardware.peak_flops_s(setup.model.shape.bytes_per_param)
    return Achieved(work, step_s, expected, hardware.bandwidth_bytes_s, peak)


def knee(levels: Sequence[float], steps: Sequence[StepTime]) -> float | None:
    """The load from which on computing takes longer than reading, for good: where their ratio passes 1, between two
    loads on a straight line of logarithms. None where it does not within these loads.

    levels: ascending. steps: of each level.
    """
    ratios = [_log_ratio(step) for step in steps]
    above = len(ratios)
    while above > 0 and ratios[above - 1] > 0:
        above -= 1
    if above in (0, len(ratios)):
        return None
    low, high = ratios[above - 1], ratios[above]
    if not (math.isfinite(low) and math.isfinite(high)):
        return float(levels[above])
    share = -low / (high - low)
    return float(levels[above - 1] * (levels[above] / levels[above - 1]) ** share)


def _log_ratio(step: StepTime) -> float:
    """Logarithm of computing over reading."""
    if step.memory_s <= 0:
        return math.inf
    return math.log(step.compute_s / step.memory_s) if step.compute_s > 0 else -math.inf
