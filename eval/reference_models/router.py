"""The two routers of the DeepSeek family: softmax with a balance loss (V2) and biased sigmoid with groups (V3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from eval.reference_models.balance import expert_counts
from eval.reference_models.recipe import ModelSpec


@dataclass
class Routing:
    """What a router decided for (tokens, hidden) inputs.

    Attributes:
        weights, indices: (tokens, k), the chosen experts and their factors.
        probabilities: (tokens, experts), each token's scores as shares of 1.
        counts: (experts,), how many slots chose each expert.
        logits: (tokens, experts).
    """

    weights: torch.Tensor
    indices: torch.Tensor
    probabilities: torch.Tensor
    counts: torch.Tensor
    logits: torch.Tensor


class Router(nn.Module):
    """Gate matrix and top-k; subclasses say how logits become scores and what is done with the chosen ones.

    ``kept`` (experts,) bool, where set, hides the other experts as if they had been pruned.
    """

    kept: torch.Tensor | None = None

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.n_routed_experts, spec.hidden_size))
        self.top_k = spec.num_experts_per_tok
        self.scale = spec.routed_scaling_factor

    def forward(self, x: torch.Tensor) -> Routing:
        """(tokens, hidden) to the routing, computed in float32."""
        logits = F.linear(x.float(), self.weight)
        if self.kept is not None:
            logits = logits.masked_fill(~self.kept, -torch.inf)
        weights, indices, probabilities = self.choose(logits)
        return Routing(weights, indices, probabilities, expert_counts(indices, logits.shape[-1]), logits)

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(tokens, experts) logits to weights and indices (tokens, k) and probabilities (tokens, experts)."""
        raise NotImplementedError


class SoftmaxRouter(Router):
    """DeepSeek-V2: greedy top-k of the softmax; the k weights are not renormalised (norm_topk_prob = false)."""

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        probabilities = logits.softmax(dim=-1)
        weights, indices = probabilities.topk(self.top_k, dim=-1)
        return weights * self.scale, indices, probabilities


class SigmoidRouter(Router):
    """DeepSeek-V3 (arXiv:2412.19437, eq. 12-16): sigmoid scores, a bias that only chooses, groups.

    `topk_group` of `n_group` groups stay in the choice: those with the largest sum of their two best biased scores.
    """

    e_score_correction_bias: torch.Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.groups, self.kept_groups = spec.n_group, spec.topk_group
        self.register_buffer("e_score_correction_bias", torch.zeros(spec.n_routed_experts))

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = logits.sigmoid()
        choice = scores.detach() + self.e_score_correction_bias
        if self.kept is not None:
            choice = choice.masked_fill(~self.kept, -torch.inf)
        choice = choice.unflatten(-1, (self.groups, -1))
        best_groups = choice.topk(2, dim=-1).values.sum(dim=-1).topk(self.kept_groups, dim=-1).indices
        allowed = torch.zeros_like(choice[..., 0]).scatter(1, best_groups, 1.0).bool()
        indices = choice.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(1).topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, indices)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * self.scale, indices, scores / scores.sum(dim=-1, keepdim=True)

    @torch.no_grad()
    def rebalance(self, counts: torch.Tensor, rate: float) -> None:
        """Auxiliary-loss-free balancing: raise the bias of experts below the mean load by `rate`, lower the others."""
        load = counts.float()
        self.e_score_correction_bias += rate * (load.mean() - load).sign()


def make_router(spec: ModelSpec) -> Router:
    """The router of the spec's architecture."""
    return SigmoidRouter(spec) if spec.model_type == "deepseek_v3" else SoftmaxRouter(spec)
