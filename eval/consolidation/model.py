"""A DeepSeek checkpoint in float32 whose decode steps are batches: each MoE layer sees all sequences of a step at once.

Teacher forcing knows all tokens beforehand, so that a layer can run every step of a batch in one call: tokens of one
step are consolidated together, by the same function as in the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.consolidation.arms import Arm
from sglang_moe_opt.pruning.moe_layer import MoELayer, SwiGLU, Tensors
from sglang_moe_opt.pruning.student import load_teacher
from sglang_moe_opt.routing import MASS, Choice
from sglang_moe_opt.routing.choice import router_scores, slot_scores
from sglang_moe_opt.routing.consolidate import fill


@dataclass(frozen=True)
class Batch:
    """Texts that decode side by side; T = tokens of the longest.

    Attributes:
        ids: int64 [B, T], padded at the end.
        steps: int64 [B, T], the decode step of each token; -1 = of the prompt, or padding.
        scored: bool [B, T], tokens whose likelihood counts.
    """

    ids: Tensor
    steps: Tensor
    scored: Tensor

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], prompts: Sequence[int], scored_from: Sequence[int], lead: int) -> Batch:
        """`prompts`: tokens of each text that run in full; decoding is aligned to `lead` steps before `scored_from`."""
        length = max(map(len, texts))
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        at = torch.arange(length)
        rows = []
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            rows.append((len(text), prompts[row], scored_from[row]))
        ends, begins, scores = (torch.tensor(column).unsqueeze(1) for column in zip(*rows, strict=True))
        inside = at < ends
        steps = torch.where(inside & (at >= begins), at - (scores - lead), -1).clamp(min=-1)
        return cls(ids, steps, inside & (at >= scores))


class BatchedMoE(nn.Module):
    """Stands in for a layer's MoE; the model's owner sets `batch` and `arm` before each pass."""

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        self._router = layer.router
        experts = [layer.expert(expert) for expert in range(layer.router.shape.num_experts)]
        self._gate_up = [torch.cat([expert.gate, expert.up]) for expert in experts]
        self._down = [expert.down for expert in experts]
        self._shared: SwiGLU | None = layer.shared
        self.steps = torch.empty(0)
        self.arm = Arm(layer.router.shape.top_k)
        self.sizes: Sequence[int] = (1,)
        self.distinct: dict[int, float] = {}

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, H] to the same shape."""
        x = hidden_states.flatten(0, 1)
        logits = self._router.logits(x)
        weights, ids = self._router.choose(logits)
        weights, ids = self._scheduled(weights, ids, logits)
        out = torch.zeros_like(x) if self._shared is None else self._shared(x)
        kept = (ids >= 0).flatten().nonzero().squeeze(1)
        order = kept[ids.flatten()[kept].argsort(stable=True)]
        tokens, factors = order // ids.shape[1], weights.flatten()[order].unsqueeze(1)
        counts = torch.bincount(ids.flatten()[order], minlength=len(self._down)).tolist()
        parts = zip(tokens.split(counts), factors.split(counts), self._gate_up, self._down, strict=True)
        for rows, share, gate_up, down in parts:
            if len(rows):
                gate, up = F.linear(x[rows], gate_up).chunk(2, dim=-1)
                out.index_add_(0, rows, F.linear(F.silu(gate) * up, down) * share)
        return out.view(hidden_states.shape)

    def _scheduled(self, weights: Tensor, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The router's slots, best first, after the arm's rule in the decode steps."""
        shape, arm = self._router.shape, self.arm
        count, seats = self.steps.shape
        step = self.steps.flatten()
        decoding = (step >= 0).nonzero().squeeze(1)
        seat = decoding // seats
        grid = step[decoding] * count + seat
        total = int(step.max()) + 1

        def spread(values: Tensor, empty: float) -> Tensor:
            out = torch.full((total * count, values.shape[1]), empty, dtype=values.dtype)
            out[grid] = values[decoding]
            return out.view(total, count, -1)

        step_weights, step_ids = spread(weights, 0.0), spread(ids, -1)
        if arm.k0:
            choice = Choice(spread(logits, 0.0).flatten(0, 1), self._router.bias, shape.scoring)
            every = torch.arange(shape.num_experts).expand(len(choice.logits), -1)
            scores, shares = (t.view(total, count, -1) for t in (slot_scores(choice, every), router_scores(choice)))
            k0, na = (torch.full((total, count), value) for value in (arm.k0, arm.na))
            rescale = torch.full((total, count), MASS if shape.renormalize else 1.0)
            rule = arm.rule(shape.n_group)
            done = fill(step_weights, step_ids, step_ids, scores, shares, k0, na, rescale, rule=rule)
            step_weights, step_ids = done.weights, done.ids
        elif arm.na < shape.top_k:
            factor = 1.0
            if shape.renormalize:
                mass = step_weights.sum(-1, keepdim=True)
                factor = mass / step_weights[..., : arm.na].sum(-1, keepdim=True).clamp(min=1e-20)
            step_weights = step_weights * factor
            step_ids = step_ids.clone()
            step_ids[..., arm.na :] = -1
        self.distinct = {size: self._count(step_ids, size) for size in self.sizes}
        weights[decoding] = step_weights.flatten(0, 1)[grid]
        ids[decoding] = step_ids.flatten(0, 1)[grid]
        return weights, ids

    def _count(self, ids: Tensor, size: int) -> float:
        """Mean distinct experts of the steps in which all of `size` sequences decode."""
        experts = self._router.shape.num_experts
        ids = torch.cat([part for part in ids.split(size, dim=1) if part.shape[1] == size])
        full = (ids >= 0).any(-1).all(-1)
        touched = torch.zeros(len(ids), experts + 1)
        touched.scatter_(1, torch.where(ids >= 0, ids, experts).flatten(1), 1.0)
        return float(touched[full, :-1].sum(-1).mean()) if full.any() else 0.0


class BatchedModel:
    """The checkpoint; raises ValueError for one that is not DeepSeek V2 or V3."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = load_teacher(folder, torch.float32, "cpu")
        self._layers: list[BatchedMoE] = []
        with Tensors(folder) as tensors:
            self.shape = tensors.shape
            for layer_id in tensors.shape.moe_layer_ids:
                moe = BatchedMoE(MoELayer.read(tensors, layer_id))
                self._model.model.layers[layer_id].mlp = moe
                self._layers.append(moe)

    @torch.inference_mode()
    def logits(self, batch: Batch, arm: Arm) -> Tensor:
        """float32 [B, T, vocabulary]; the layers' counts are those of this pass."""
        for layer in self._layers:
            layer.steps, layer.arm = batch.steps, arm
        result: Tensor = self._model(batch.ids, use_cache=False).logits.float()
        return result

    @torch.inference_mode()
    def nats(self, batch: Batch, arm: Arm, sizes: Sequence[int] = ()) -> tuple[Tensor, dict[int, list[float]]]:
        """Minus log-likelihood of each text's scored tokens, float64 [B], and each layer's distinct experts a step.

        `sizes`: what batches of that size, parts of this one, would touch; only where tokens do not consolidate.
        """
        for layer in self._layers:
            layer.sizes = sizes or (len(batch.ids),)
        logits = self.logits(batch, arm)
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        nats = (losses.view(len(batch.ids), -1).double() * batch.scored[:, 1:]).sum(-1)
        return nats, {size: [layer.distinct[size] for layer in self._layers] for size in self._layers[0].sizes}
