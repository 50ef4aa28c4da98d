"""Muon and AdamW with one token-based warm-up / constant / linear-decay schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from eval.reference_models.recipe import OptimSpec, TrainSpec


def learning_rate_scale(tokens: int, train: TrainSpec, total_tokens: int) -> float:
    """Factor on the base learning rate after `tokens`: linear warm-up, constant, linear decay to 0 at the end.

    `total_tokens` may be lowered while resuming: the decay then begins earlier.
    """
    if tokens < train.warmup_tokens:
        return tokens / train.warmup_tokens
    decay_tokens = max(1, round(total_tokens * train.decay_fraction))
    return min(1.0, max(0.0, (total_tokens - tokens) / decay_tokens))


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Push the singular values of each (..., rows, columns) matrix to about 1 by Newton-Schulz iterations.

    Quintic coefficients of K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).contiguous()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix; a 3-D parameter is a stack of matrices.

    The update is scaled by 0.2 sqrt(max(rows, columns)), so that AdamW's learning rate and weight decay fit
    (J. Liu et al., "Muon is Scalable for LLM Training", arXiv:2502.16982, eq. 4).
    """

    def __init__(
        self, params: list[nn.Parameter], halves: list[bool], lr: float, momentum: float, weight_decay: float
    ) -> None:
        """`halves[i]` says that parameter i holds two matrices (gate and up) on top of each other."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._halves = dict(zip(params, halves, strict=True))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum: torch.Tensor = state["momentum"]
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])
                if self._halves[p]:
                    update = update.unflatten(-2, (2, -1))
                rows, columns = update.shape[-2:]
                update = orthogonalise(update).reshape(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, columns)))


class Optimizers:
    """Both optimisers as one object with one state."""

    def __init__(self, model: nn.Module, spec: OptimSpec) -> None:
        matrices: list[nn.Parameter] = []
        halves: list[bool] = []
        tables: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or name.endswith("mlp.gate.weight"):
                plain.append(parameter)
            elif "embed_tokens" in name or "lm_head" in name:
                tables.append(parameter)
            else:
                matrices.append(parameter)
                halves.append(name.endswith("gate_up_proj"))
        self._spec = spec
        self.muon = Muon(matrices, halves, spec.muon_lr, spec.muon_momentum, spec.weight_decay)
        self.adam = torch.optim.AdamW(
            [{"params": tables, "weight_decay": spec.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=spec.adam_lr,
            betas=spec.adam_betas,
            fused=True,
        )

    def step(self, scale: float) -> None:
        """Update with `scale` times the base learning rates, then clear the gradients."""
        for optimizer, lr in ((self.muon, self._spec.muon_lr), (self.adam, self._spec.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """State of both optimisers."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
