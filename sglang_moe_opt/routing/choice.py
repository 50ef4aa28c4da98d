"""A router's scores in plain torch: what it selects experts by, and what its weights are proportional to."""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_moe_opt.routing.base import Choice


def slot_scores(choice: Choice, experts: Tensor) -> Tensor:
    """Return the choice score of each slot, float32 [n, K]; ``experts`` is int64 [n, K] within 0..E-1.

    Scores are meant for ranking within a token: softmax without a bias returns the logits, which rank alike.
    """
    if choice.scoring == "softmax" and choice.bias is not None:
        # The bias is added to probabilities, so the denominator over all experts matters here, and only here.
        return torch.softmax(choice.logits.float(), dim=-1).gather(1, experts) + choice.bias.float()[experts]
    score = choice.logits.gather(1, experts).float()
    if choice.scoring == "softmax":
        return score
    score = score.sigmoid() if choice.scoring == "sigmoid" else torch.nn.functional.softplus(score).sqrt()
    return score if choice.bias is None else score + choice.bias.float()[experts]


def router_scores(choice: Choice) -> Tensor:
    """Return what the router's weights are proportional to within a token, for every expert; float32 [n, E]."""
    logits = choice.logits.float()
    if choice.scoring == "softmax":
        # Without the denominator, which a ratio of two scores of one token does not need.
        return (logits - logits.amax(-1, keepdim=True)).exp()
    return logits.sigmoid() if choice.scoring == "sigmoid" else torch.nn.functional.softplus(logits).sqrt()
