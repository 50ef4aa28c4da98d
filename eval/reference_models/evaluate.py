"""Held-out measurements: bits per byte by source, loss with fewer experts (paired), expert load, router entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from eval.reference_models.balance import max_over_mean, router_entropy
from eval.reference_models.data import TokenCorpus, heldout_windows
from eval.reference_models.gate import pruning_losses, relative_interval, verdict
from eval.reference_models.model import ReferenceModel
from eval.reference_models.sources import TEXT_SOURCES


@torch.no_grad()
def window_nats(model: ReferenceModel, inputs: torch.Tensor, targets: torch.Tensor, batch: int = 16) -> torch.Tensor:
    """Summed cross-entropy (nats) of each (window, length) row; targets of -100 are ignored."""
    sums = []
    for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
        logits = model(x)[0].float()
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        sums.append(losses.view(y.shape).double().sum(dim=1))
    return torch.cat(sums)


def quick_bits_per_byte(model: ReferenceModel, heldout: TokenCorpus, length: int, windows: int = 8) -> float:
    """Bits per byte on the first `windows` windows of each text source: a fixed sample for the training curve."""
    nats, n_bytes = 0.0, 0.0
    for source in (name for name in TEXT_SOURCES if name in heldout.sources):
        tokens, source_bytes = heldout.only(source)
        sample = tokens[: windows * length + 1]
        inputs, targets = heldout_windows(sample, length)
        nats += window_nats(model, inputs, targets).sum().item()
        n_bytes += source_bytes * len(sample) / len(tokens)
    return nats / math.log(2) / n_bytes


@contextmanager
def experts_per_token(model: ReferenceModel, n_activated: int) -> Iterator[None]:
    """Let every router choose only `n_activated` experts, as the model does with that top-k."""
    routers = model.routers
    before = [router.top_k for router in routers]
    for router, most in zip(routers, before, strict=True):
        if not 1 <= n_activated <= most:
            raise ValueError(f"n_activated={n_activated} must be between 1 and the trained {most}")
        router.top_k = n_activated
    try:
        yield
    finally:
        for router, most in zip(routers, before, strict=True):
            router.top_k = most


@torch.no_grad()
def routing_report(model: ReferenceModel, inputs: torch.Tensor, batch: int = 16) -> list[dict[str, float]]:
    """Per expert layer over (windows, length) inputs: load of the busiest and idlest expert, router decidedness."""
    counts: dict[int, torch.Tensor] = {}
    entropy: dict[int, list[float]] = {}
    mass: dict[int, list[float]] = {}
    for x in inputs.split(batch):
        for layer, routing in zip(model.spec.moe_layers, model(x)[1], strict=True):
            count, scores = routing.counts, routing.probabilities
            counts[layer] = counts.get(layer, torch.zeros_like(count)) + count
            entropy.setdefault(layer, []).append(router_entropy(scores))
            mass.setdefault(layer, []).append(
                scores.topk(model.spec.num_experts_per_tok, dim=-1).values.sum(dim=-1).mean().item()
            )
    return [
        {
            "layer": layer,
            "load_max_over_mean": round(max_over_mean(count), 3),
            "load_min_over_mean": round((count.min() / count.double().mean()).item(), 3),
            "router_entropy": round(sum(entropy[layer]) / len(entropy[layer]), 4),
            "top_k_mass": round(sum(mass[layer]) / len(mass[layer]), 4),
        }
        for layer, count in counts.items()
    ]


def evaluate(
    model: ReferenceModel,
    heldout: TokenCorpus,
    length: int,
    calibration: torch.Tensor,
    mix: torch.Tensor,
    report: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """All held-out measurements of one model, ready for JSON.

    `calibration` are (windows, length) tokens of training text, on which experts are counted for pruning; `mix` such
    tokens of everything the model was trained on, where the load was to be balanced.

    Bits per byte: every source's documents (each with its begin and end token) are packed into windows of
    `length` tokens; each token is predicted once, within its window.
    """
    data = {source: heldout.only(source) for source in heldout.sources}
    windows = {source: heldout_windows(tokens, length) for source, (tokens, _) in data.items()}
    texts = [source for source in TEXT_SOURCES if source in windows]
    full = {source: window_nats(model, *windows[source]).numpy() for source in windows}
    to_bits = {source: 1 / math.log(2) / data[source][1] for source in windows}
    bits = {source: float(full[source].sum() * to_bits[source]) for source in windows}
    text_bytes = sum(data[source][1] for source in texts)
    base = np.concatenate([full[source] for source in texts])
    total = float(base.sum() / math.log(2) / text_bytes)

    def text_losses() -> np.ndarray:
        return np.concatenate([window_nats(model, *windows[source]).numpy() for source in texts])

    report(f"held-out text: {total:.4f} bits per byte")
    reduced = []
    most = model.spec.num_experts_per_tok
    for n_activated in range(most, 0, -1):
        nats = base
        if n_activated < most:
            with experts_per_token(model, n_activated):
                nats = text_losses()
        change, low, high = relative_interval(nats, base)
        reduced.append(
            {
                "na": n_activated,
                "bpb": round(float(nats.sum() / math.log(2) / text_bytes), 5),
                "change_percent": round(change, 3),
                "change_percent_95": [round(low, 3), round(high, 3)],
            }
        )
        report(f"na={n_activated}: {change:+.2f} % [{low:+.2f}, {high:+.2f}]")
    pruned = pruning_losses(model, calibration, base, text_losses)
    for row in pruned:
        report(f"{row['experts']} experts by {row['method']}: {row['change_percent']:+.2f} %")
    return {
        "text_bpb": round(total, 5),
        "text_bytes": text_bytes,
        "text_windows": len(base),
        "bpb": {source: round(value, 5) for source, value in bits.items()},
        "experts_per_token": reduced,
        "pruned_to_half": pruned,
        "gate": verdict(reduced, pruned),
        "routing": routing_report(model, torch.cat([windows[source][0] for source in texts])),
        "routing_on_training_mix": routing_report(model, mix),
    }
