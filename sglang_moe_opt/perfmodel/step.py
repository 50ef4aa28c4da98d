"""The time of a step: its parts on one device, what devices say to each other, and what depends on nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.curve import Curve
from sglang_moe_opt.perfmodel.hardware import Hardware
from sglang_moe_opt.perfmodel.model import ACTIVATION_BYTES, ServedModel
from sglang_moe_opt.perfmodel.parallel import Parallelism, all_reduce_s, all_to_all_s, gather_s
from sglang_moe_opt.perfmodel.parameters import Parameters
from sglang_moe_opt.perfmodel.work import Batch, step_parts

Regime = Literal["memory", "compute", "communication", "overhead"]
REGIMES: Final[tuple[Regime, ...]] = ("memory", "compute", "communication", "overhead")
STATIC_FRACTIONS: Final = ((16, 0.79), (8, 0.81), (4, 0.85), (2, 0.87), (1, 0.88))
"""From so many devices on, the share of the memory that SGLang 0.4.4 gives to weights and cache by itself."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they are spent on; they add up to `total_s`."""

    memory_s: float = 0.0
    compute_s: float = 0.0
    communication_s: float = 0.0
    overhead_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.memory_s + self.compute_s + self.communication_s + self.overhead_s

    def __add__(self, other: StepTime) -> StepTime:
        return StepTime(*(getattr(self, f"{name}_s") + getattr(other, f"{name}_s") for name in REGIMES))

    def times(self, factor: float) -> StepTime:
        return StepTime(*(factor * getattr(self, f"{name}_s") for name in REGIMES))

    @property
    def shares(self) -> dict[Regime, float]:
        """Share of the time by what it is spent on."""
        total = self.total_s
        return {name: getattr(self, f"{name}_s") / total for name in REGIMES}

    @property
    def regime(self) -> Regime:
        """What most of the time is spent on."""
        return max(REGIMES, key=lambda name: getattr(self, f"{name}_s"))


@dataclass(frozen=True)
class Setup:
    """A model on devices, and how its engine is run. Raises FieldError where the devices cannot share the model evenly.

    Attributes:
        chunk_tokens: tokens that one prefill step takes at most.
        memory_fraction: share of a device's memory for weights and cache; None takes STATIC_FRACTIONS.
    """

    model: ServedModel
    hardware: Hardware
    split: Parallelism = field(default_factory=Parallelism)
    chunk_tokens: int = 8192
    memory_fraction: float | None = None

    def __post_init__(self) -> None:
        split, heads, shape = self.split, self.model.num_heads, self.model.shape
        if heads % split.tp:
            raise FieldError("--tp", split.tp, f"a divisor of the model's {heads} attention heads")
        if shape.moe_intermediate_size % split.expert_shards:
            width = shape.moe_intermediate_size
            raise FieldError("--tp", split.tp, f"a number that splits an expert's width, {width}, evenly")
        if shape.num_experts % split.ep:
            raise FieldError("--ep", split.ep, f"a divisor of the model's {shape.num_experts} experts")

    @property
    def cache_and_weights_bytes(self) -> float:
        """Memory of one device for weights and cache."""
        fraction = self.memory_fraction
        if fraction is None:
            fraction = next(share for least, share in STATIC_FRACTIONS if self.split.tp >= least)
        return self.hardware.memory_bytes * fraction


def step_time(setup: Setup, curve: Curve, parameters: Parameters, batch: Batch) -> StepTime:
    """Time of one step.

    A part takes the longer of reading and computing, and what is not hidden of the shorter one:
    max + (1 - overlap) min. Parts, communication and overhead follow one another.
    """
    hardware, model = setup.hardware, setup.model
    peak = hardware.peak_flops_s(model.shape.bytes_per_param)
    memory_s = compute_s = 0.0
    for part in step_parts(model, curve, setup.split, batch, parameters.routing_skew):
        share = parameters.attention_efficiency if part.is_cache else parameters.bandwidth_efficiency
        reading_s = part.moved_bytes / (hardware.bandwidth_bytes_s * share)
        ceiling = hardware.flops_s if part.is_cache else peak
        computing_s = part.flops / (ceiling * parameters.flops_efficiency)
        exposed = 1 - parameters.overlap
        memory_s += reading_s if reading_s >= computing_s else exposed * reading_s
        compute_s += computing_s if computing_s > reading_s else exposed * computing_s
    return StepTime(
        memory_s, compute_s, communication_s(setup, curve, parameters, batch), _overhead_s(setup, parameters, batch)
    )


def communication_s(setup: Setup, curve: Curve, parameters: Parameters, batch: Batch) -> float:
    """All-reduces after attention and after each feed-forward layer, and the gathering of the logits.

    With expert parallelism an MoE layer's is replaced: each of the ep groups sends its share of the tokens to the
    groups of their experts, once for a group however many experts it has there, and gets the results back.
    """
    split, shape, hardware = setup.split, setup.model.shape, setup.hardware
    share = parameters.network_efficiency
    hidden_bytes = shape.hidden_size * ACTIVATION_BYTES
    reduces = 2 * shape.num_layers + 1 - (shape.num_moe_layers if split.ep > 1 else 0)
    seconds = reduces * all_reduce_s(hardware, split.tp, batch.tokens * hidden_bytes, share)
    logits_bytes = batch.sequences * shape.vocab_size * ACTIVATION_BYTES
    seconds += gather_s(hardware, split.tp, logits_bytes, share)
    if split.ep == 1:
        return seconds
    sent_bytes = shape.hidden_size * min(shape.bytes_per_param, ACTIVATION_BYTES)
    for na in curve.na_prefill if batch.is_prefill else curve.na_decode:
        others = (split.ep - 1) * (1 - (1 - 1 / split.ep) ** na)
        for row_bytes in (sent_bytes, hidden_bytes):
            seconds += all_to_all_s(hardware, split.tp, batch.tokens / split.tp * others * row_bytes, share)
    return seconds


def _overhead_s(setup: Setup, parameters: Parameters, batch: Batch) -> float:
    kernels = setup.model.kernels
    limit = parameters.graph_max_batch
    seconds = parameters.step_overhead_s + kernels * parameters.kernel_overhead_s
    seconds += batch.sequences * parameters.sequence_overhead_s
    if limit is not None and (batch.is_prefill or batch.sequences > limit):
        seconds += kernels * parameters.eager_kernel_overhead_s
    return seconds
