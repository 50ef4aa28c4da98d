"""Expert load: the balance loss of DeepSeek-V2 and the load statistics that the log and the model card report."""

from __future__ import annotations

import torch


def expert_counts(indices: torch.Tensor, n_experts: int) -> torch.Tensor:
    """How many token slots chose each expert: (tokens, k) indices to (experts,) counts."""
    flat = indices.reshape(-1)
    return torch.zeros(n_experts, dtype=torch.int64).scatter_add(0, flat, torch.ones_like(flat))


def balance_loss(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Expert-level balance loss sum_i f_i P_i (DeepSeek-V2, arXiv:2405.04434, eq. 12-14, without alpha).

    `scores` (tokens, experts) are the router's probabilities, `counts` (experts,) the chosen slots.
    The value is 1 for perfectly even routing.
    """
    fraction = counts.to(scores.dtype) * (counts.numel() / counts.sum())
    return (fraction * scores.mean(dim=0)).sum()


def max_over_mean(counts: torch.Tensor) -> float:
    """Load of the busiest expert relative to the mean; 1 is even."""
    return (counts.max() / counts.double().mean()).item()


def router_entropy(scores: torch.Tensor) -> float:
    """Mean entropy of the tokens' router distributions relative to the uniform one (1 = undecided)."""
    entropy = -(scores * scores.clamp_min(1e-20).log()).sum(dim=-1).mean()
    return (entropy / torch.log(torch.tensor(float(scores.shape[-1])))).item()
