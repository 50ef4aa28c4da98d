"""The routers of the DeepSeek family in torch, with experts left out: what a pruned model chooses for each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import min_per_group


@dataclass(frozen=True)
class Router:
    """One layer's router; E experts, H hidden.

    Attributes:
        shape: of the full model.
        scale: routed_scaling_factor; it is in the weights.
        weight: float32 [E, H].
        bias: float32 [E], added to scores for the choice alone (e_score_correction_bias); None without one.
        kept: bool [E], or [T, E] for tokens apart; the logits of the others are -inf. None keeps all.
    """

    shape: MoEShape
    scale: float
    weight: Tensor
    bias: Tensor | None = None
    kept: Tensor | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Inputs [T, H] to logits of all experts, [T, E]."""
        return x @ self.weight.t()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [T, H] to weights float32 [T, k] and expert ids int64 [T, k]."""
        return self.choose(self.logits(x))

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of all experts [T, E] to weights float32 [T, k] and expert ids int64 [T, k]."""
        shape = self.shape
        if self.kept is not None:
            logits = logits.masked_fill(~self.kept, -torch.inf)
        scores = logits.sigmoid() if shape.scoring == "sigmoid" else logits.softmax(dim=-1)
        choice = scores if self.bias is None else scores + self.bias
        if self.kept is not None:
            choice = choice.masked_fill(~self.kept, -torch.inf)
        if shape.n_group > 1:
            choice = _in_best_groups(choice, shape)
        ids = choice.topk(shape.top_k, dim=-1).indices
        weights = scores.gather(1, ids)
        if shape.renormalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * self.scale, ids

    def to(self, device: torch.device) -> Router:
        """The same on another device; itself where it is there already."""
        if self.weight.device == device:
            return self
        bias, kept = (None if one is None else one.to(device) for one in (self.bias, self.kept))
        return replace(self, weight=self.weight.to(device), bias=bias, kept=kept)


def routed_scale(config: Mapping[str, Any]) -> float:
    """The config's factor on the routed experts' weights; 1 where it has none."""
    return float(config.get("routed_scaling_factor") or 1.0)


def _in_best_groups(choice: Tensor, shape: MoEShape) -> Tensor:
    """`choice` [T, E] with all but the `topk_group` best groups at -inf (arXiv:2412.19437, 2405.04434)."""
    grouped = choice.unflatten(-1, (shape.n_group, -1))
    best = grouped.topk(min_per_group(shape), dim=-1).values.sum(dim=-1).topk(shape.topk_group, dim=-1).indices
    allowed = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter(1, best, True)
    return grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(1)
