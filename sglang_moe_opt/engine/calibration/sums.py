"""What calibration adds up: each routed expert's output on its tokens, in plain torch, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_moe_opt.pruning.statistics import PER_EXPERT


def run_experts(x: Tensor, ids: Tensor, weights: Tensor, w13: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the experts' outputs, and their weighted sum; computed in float32.

    Args:
        x: [tokens, hidden], what the experts get.
        ids: int64 [tokens, slots].
        weights: float32 [tokens, slots], by which outputs are multiplied in the sum.
        w13: [experts, 2 * inner, hidden], gate rows before up rows. w2: [experts, hidden, inner].

    Returns:
        float32 [tokens, slots], the 2-norm of each unweighted output; float32 [tokens, hidden].
    """
    slots = ids.shape[1]
    flat, flat_weights = ids.flatten(), weights.flatten()
    norms = torch.zeros(len(flat), device=x.device)
    total = torch.zeros(x.shape, device=x.device)
    counts = torch.bincount(flat, minlength=len(w13)).tolist()
    for expert, picked in enumerate(flat.argsort(stable=True).split(counts)):
        if not len(picked):
            continue
        rows = picked // slots
        gate, up = F.linear(x[rows].float(), w13[expert].float()).chunk(2, dim=-1)
        output = F.linear(F.silu(gate) * up, w2[expert].float())
        norms[picked] = torch.linalg.vector_norm(output, dim=-1)
        total.index_add_(0, rows, output * flat_weights[picked, None])
    return norms.view(ids.shape), total


def change(before: Tensor, added: Tensor) -> Tensor:
    """1 - cos(before, before + added) of each row, in float64: [tokens], at least 0. Both: [tokens, hidden].

    Where little is added the cosine is next to 1, and float32 would leave three digits of the difference.
    """
    before, after = before.double(), before.double() + added.double()
    return (1 - F.cosine_similarity(before, after, dim=-1)).clamp_min(0)


class ExpertSums:
    """The sums of ``pruning.statistics.ExpertStatistics``, growing.

    Args:
        layers: MoE layers.
        experts: routed experts in each.
        device: where the layers' tensors are.
    """

    def __init__(self, layers: int, experts: int, device: torch.device | str) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.experts = experts
        self.tensors = {name: zeros(layers, experts) for name in PER_EXPERT}
        self.tensors["coactivation"] = zeros(layers, experts, experts)

    def add(self, layer: int, ids: Tensor, weights: Tensor, norms: Tensor, changes: Tensor) -> None:
        """Count tokens of one layer.

        Args:
            layer: its place among the MoE layers.
            ids: int64 [tokens, slots], all different in a row.
            weights, norms: float32 [tokens, slots], gate weights and output norms.
            changes: float64 [tokens], by how much the routed experts turned the token's hidden state.
        """
        gated = weights.double() * norms.double()
        values = {
            "hard": torch.ones_like(gated),
            "soft": weights.double(),
            "reap": gated,
            "easy_ep": gated * changes[:, None],
            "norm": norms.double(),
        }
        for name, value in values.items():
            self.tensors[name][layer].index_add_(0, ids.flatten(), value.flatten())
        # 0 and 1 in float32: counts are exact up to 2^24 tokens in a step
        chosen = torch.zeros(len(ids), self.experts, device=ids.device).scatter_(1, ids, 1.0)
        self.tensors["coactivation"][layer] += (chosen.T @ chosen).double()
