"""Cross-entropy of a linear head without keeping the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from eval.reference_models import kernels

CHUNK = 2048
"""Rows whose logits exist at a time."""


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is computed along with the loss, chunk by chunk, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows, matrix = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        total = x.new_zeros(())
        for chunk, chunk_targets, out in zip(rows.split(CHUNK), targets.split(CHUNK), dx.split(CHUNK), strict=True):
            logits = chunk @ matrix.t()
            total += torch.ops.reference_models.cross_entropy_(logits, chunk_targets, 1.0 / len(rows)).sum()
            out.copy_(logits @ matrix)
            dweight += logits.t() @ chunk
        ctx.save_for_backward(dx, dweight)
        return total / len(rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        dx, dweight = ctx.saved_tensors
        return dx * grads[0], dweight * grads[0], None


def linear_cross_entropy(x: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of (rows, vocabulary) logits `head(x)` with `targets` (rows,)."""
    if head.compute_dtype == torch.bfloat16 and kernels.available():
        loss: torch.Tensor = _LinearCrossEntropy.apply(x, head.weight, targets)
        return loss
    return F.cross_entropy(head(x).float(), targets)
