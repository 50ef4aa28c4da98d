"""Bytes and operations of one decode and one prefill step on one device, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sglang_moe_opt.perfmodel.curve import Curve, Layers
from sglang_moe_opt.perfmodel.model import ACTIVATION_BYTES, ServedModel
from sglang_moe_opt.perfmodel.parallel import Parallelism, largest_of
from sglang_moe_opt.perfmodel.routing import inclusion, moments, touched, touched_by_skew


class Part(NamedTuple):
    """One kind of kernels of a step: moved_bytes, what the device reads and writes, and flops, what it computes.

    is_cache: it reads the cache, which attention does at another efficiency than products read weights.
    """

    name: str
    moved_bytes: float
    flops: float
    is_cache: bool = False


@dataclass(frozen=True)
class Batch:
    """What a step computes: `tokens` of `sequences`, each token attending to `context` cached ones on average.

    distinct: experts that an MoE layer touches, mean over the layers, where measured; None takes the expectation.
    """

    tokens: float
    sequences: float
    context: float
    is_prefill: bool
    distinct: float | None = None


def step_parts(model: ServedModel, curve: Curve, split: Parallelism, batch: Batch, skew: float) -> list[Part]:
    """Every part of a step on the fullest device; norms, residuals and sampling count as overhead."""
    shape, n = model.shape, batch.tokens
    experts_bytes, experts_flops = routed_experts(model, curve, split, batch, skew)
    router = shape.hidden_size * sum(curve.kept)
    head = shape.hidden_size * shape.vocab_size / split.tp
    weights = [
        Part(name, params * shape.bytes_per_param, 2 * n * params) for name, params in _params(model, split).items()
    ]
    return [
        *weights,
        Part("router", router * model.wide_bytes, 2 * n * router),
        Part("head", head * model.wide_bytes, 2 * batch.sequences * head),
        _cache(model, split, batch),
        Part("experts", experts_bytes, experts_flops),
    ]


def routed_experts(
    model: ServedModel, curve: Curve, split: Parallelism, batch: Batch, skew: float
) -> tuple[float, float]:
    """Bytes (weights of distinct experts, and rows of hidden states) and flops of the fullest device.

    A slot's rows: the hidden state in, gate and up out, both in and their product out, that in and the result out,
    and the result in once more where the slots of a token are added up: 3 hidden sizes and 6 widths.
    """
    shape = model.shape
    expert_bytes = shape.expert_bytes / split.expert_shards
    width = shape.moe_intermediate_size / split.expert_shards
    slot_bytes = (3 * shape.hidden_size + 6 * width) * ACTIVATION_BYTES
    slot_flops = 6 * shape.hidden_size * width
    total_bytes = total_flops = 0.0
    for na, mean, variance, kept in distinct_by_layer(curve, batch, skew):
        slots = batch.tokens * na
        fullest = largest_of(split.ep, mean / split.ep, variance / split.ep, kept / split.ep)
        rows = largest_of(split.ep, slots / split.ep, slots / split.ep * (1 - 1 / split.ep), slots)
        total_bytes += fullest * expert_bytes + rows * slot_bytes
        total_flops += rows * slot_flops
    return total_bytes, total_flops


def distinct_by_layer(curve: Curve, batch: Batch, skew: float) -> list[tuple[float, float, float, int]]:
    """Of each MoE layer: routed experts per token, mean and variance of the distinct experts touched, experts kept.

    Under consolidation a decoding token touches its own k0 experts only, and what `max_experts` adds; the other slots
    go where the batch is anyway.
    """
    na_by_layer: Layers = curve.na_prefill if batch.is_prefill else curve.na_decode
    shared = None if batch.is_prefill else curve.consolidated
    if shared is not None and shared.max_batch is not None and batch.tokens > shared.max_batch:
        shared = None
    found = []
    for index, (na, kept) in enumerate(zip(na_by_layer, curve.kept, strict=True)):
        if batch.distinct is not None:
            mean, variance = batch.distinct, 0.0
        else:
            mean, variance = _touched(curve, index, na if shared is None else min(na, shared.k0), batch, skew)
            if shared is not None and shared.max_experts is not None and mean < shared.max_experts:
                mean, variance = min(_touched(curve, index, na, batch, skew), (float(shared.max_experts), 0.0))
        found.append((na, mean, variance, kept))
    return found


def _touched(curve: Curve, index: int, na: float, batch: Batch, skew: float) -> tuple[float, float]:
    """Mean and variance of the distinct experts of a layer that tokens with `na` each touch."""
    if curve.popularity is None:
        return touched_by_skew(curve.kept[index], na, batch.tokens, skew)
    return moments(touched(inclusion(curve.popularity[index], na), batch.tokens))


def weight_bytes(model: ServedModel, curve: Curve, split: Parallelism) -> float:
    """Weights that one device holds: its share of the layers, all its kept experts, embedding and head."""
    shape = model.shape
    params = sum(_params(model, split).values())
    wide = 2 * shape.hidden_size * shape.vocab_size / split.tp + shape.hidden_size * sum(curve.kept)
    return params * shape.bytes_per_param + wide * model.wide_bytes + sum(curve.kept) * shape.expert_bytes / split.tp


def _params(model: ServedModel, split: Parallelism) -> dict[str, float]:
    """Weights of one device in all layers that every token uses, in elements."""
    shape = model.shape
    moe = shape.num_moe_layers
    attention = (shape.attention_params - model.replicated_attention_params) / split.tp
    return {
        "attention": shape.num_layers * (attention + model.replicated_attention_params),
        "dense": (shape.num_layers - moe) * 3 * shape.hidden_size * shape.intermediate_size / split.tp,
        "shared": moe * 3 * shape.hidden_size * shape.shared_intermediate_size / split.tp,
    }


def _cache(model: ServedModel, split: Parallelism, batch: Batch) -> Part:
    """Attention proper. Decoding reads each sequence's cache; prefill goes over it once for a block of queries, which
    is next to nothing beside its operations."""
    shape = model.shape
    shards = min(split.tp, model.kv_shards)
    cached = batch.sequences * batch.context if not batch.is_prefill else batch.tokens
    per_pair = model.prefill_flops_per_pair if batch.is_prefill else model.decode_flops_per_pair
    flops = batch.tokens * batch.context * per_pair * shape.num_layers / split.tp
    return Part("cache", cached * model.kv_token_bytes / shards, flops, is_cache=True)
