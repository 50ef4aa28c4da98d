"""Multiple choice by log-likelihood, without a server: the share of items whose right choice is the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from eval.reference_models.model import ReferenceModel

Pair = tuple[str, str]
"""A context and a continuation that begins with a space."""

_BATCH_TOKENS = 16384


def encode_pair(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> tuple[list[int], int]:
    """Ids of context and continuation together, and where the continuation begins, as lm-eval cuts them."""
    context, continuation = pair
    ids = tokenizer(context + continuation, add_special_tokens=False).input_ids
    return ids, len(tokenizer(context, add_special_tokens=False).input_ids)


@torch.no_grad()
def loglikelihoods(model: ReferenceModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> torch.Tensor:
    """Log-probability (nats) of each pair's continuation after its context, float64 (pairs,)."""
    encoded = [encode_pair(tokenizer, pair) for pair in pairs]
    result = torch.empty(len(pairs), dtype=torch.float64)
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0]))
    while order:
        width = -(-len(encoded[order[-1]][0]) // 64) * 64  # the fused attention wants multiples of 64
        chosen = [order.pop() for _ in range(min(len(order), max(1, _BATCH_TOKENS // width)))]
        tokens = torch.zeros(len(chosen), width + 1, dtype=torch.long)
        scored = torch.zeros(len(chosen), width, dtype=torch.bool)
        for row, i in enumerate(chosen):
            ids, start = encoded[i]
            tokens[row, : len(ids)] = torch.tensor(ids)
            scored[row, start - 1 : len(ids) - 1] = True
        logits = model(tokens[:, :-1])[0].float()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(scored.shape)
        result[chosen] = -(losses * scored).double().sum(dim=1)
    return result


def accuracy(
    model: ReferenceModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Sequence[Pair]], labels: Sequence[int]
) -> float:
    """Share of items whose likeliest pair is the one at the item's label."""
    scores = loglikelihoods(model, tokenizer, [pair for item in items for pair in item])
    right = [
        int(part.argmax()) == label for part, label in zip(scores.split([len(i) for i in items]), labels, strict=True)
    ]
    return sum(right) / len(right)
