"""The roofline of a decode step: no engine can be faster than the bytes it must read and the operations it must do."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_moe_opt.model_shape import MoEShape


@dataclass(frozen=True)
class Work:
    """What one step must at least read (bytes) and compute (floating-point operations)."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Machine:
    """What was measured: read_bandwidth in bytes/s, peak_flops in FLOP/s at the model's width."""

    read_bandwidth: float
    peak_flops: float

    def seconds(self, work: Work, *, overlap: bool = True) -> float:
        """Least time of ``work``: the longer of reading and computing, or their sum where they do not overlap."""
        reading, computing = work.bytes / self.read_bandwidth, work.flops / self.peak_flops
        return max(reading, computing) if overlap else reading + computing


def expected_distinct_experts(num_experts: int, na: float, tokens: int) -> float:
    """Experts of one layer that at least one of ``tokens`` tokens picks, under even and independent routing."""
    return num_experts * (1 - (1 - na / num_experts) ** tokens)


def decode_step(shape: MoEShape, *, tokens: int, na: float, distinct_experts: float, context: float) -> Work:
    """Work of a decode step.

    Args:
        tokens: sequences in the batch.
        na: routed experts per token, mean over the MoE layers.
        distinct_experts: per MoE layer, mean: the experts whose weights the batch reads.
        context: cached tokens of each sequence, mean.

    Attention's own operations are left out: at contexts below the hidden size they are a few percent. The router counts
    with all its rows: those that a pruned one lacks are at most a few thousandths of the bytes.
    """
    weights = shape.weight_bytes_per_token([0.0] * shape.num_moe_layers)["fixed"]
    routed = shape.num_moe_layers * distinct_experts * shape.expert_bytes
    cache = tokens * context * shape.num_layers * shape.kv_width * shape.bytes_per_param
    params = (weights + shape.num_moe_layers * na * shape.expert_bytes) / shape.bytes_per_param
    return Work(bytes=weights + routed + cache, flops=2.0 * tokens * params)
