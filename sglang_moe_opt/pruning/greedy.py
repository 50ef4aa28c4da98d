"""Greedy elimination: always remove the expert without which the layer's output changes least, tokens being rerouted.

Nothing is assumed about which experts stand in for a removed one: for every candidate, the tokens that it serves are
routed again among those that are left, and the error of the layer's output is measured on sampled inputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sglang_moe_opt.pruning.moe_layer import MoELayer
from sglang_moe_opt.pruning.ranking import experts_per_group
from sglang_moe_opt.pruning.router import Router


@torch.no_grad()
def elimination_scores(layer: MoELayer, x: Tensor, *, equal_groups: bool = True) -> NDArray[np.float64]:
    """Step in which each expert goes, float64 [E]: of any two, the one with the higher score is kept longer.

    Experts that the router cannot do without (top-k, groups) share the highest score, ordered by what their removal
    would cost.

    Args:
        layer: the full layer.
        x: sampled inputs [T, H]; time and memory grow with T x E x H.
        equal_groups: the router's groups lose their experts in turn.
    """
    shape = layer.router.shape
    outputs = torch.stack([layer.expert(expert)(x) for expert in range(shape.num_experts)], dim=1)
    elimination = _Elimination(layer.router, x, outputs)
    least = experts_per_group(shape) if shape.n_group > 1 else shape.top_k
    scores = np.zeros(shape.num_experts)
    group = np.arange(shape.num_experts) * shape.n_group // shape.num_experts
    kept = np.ones(shape.num_experts, bool)
    for step in range(shape.num_experts + 1):
        counts = np.bincount(group[kept], minlength=shape.n_group)
        may_go = counts > least if not equal_groups else (counts > least) & (counts == counts.max())
        errors = elimination.errors(torch.from_numpy(kept))
        candidates = np.flatnonzero(kept & may_go[group])
        if not len(candidates):
            left = np.flatnonzero(kept)
            scores[left[np.argsort(errors[left], kind="stable")]] = step + np.arange(len(left))
            break
        gone = candidates[np.argmin(errors[candidates])]
        scores[gone], kept[gone] = step, False
    return scores


class _Elimination:
    """A layer's routed output on sampled inputs, without any one of the experts that are left.

    Tokens are weighted by the inverse square of their full routed output, or of its median where that is larger: the
    few tokens of huge activations, on which a squared error would be decided otherwise, count like any others.
    """

    def __init__(self, router: Router, x: Tensor, outputs: Tensor) -> None:
        self.router, self.outputs = router, outputs
        self.logits = router.logits(x)
        weights, ids = router.choose(self.logits)
        self.target = _mix(outputs, torch.arange(len(x)), weights, ids)
        length = self.target.norm(dim=1)
        self.importance = length.clamp(min=length.median().item()).square().reciprocal()

    def errors(self, kept: Tensor) -> NDArray[np.float64]:
        """The weighted squared error without each expert of `kept` bool [E]; infinite for those already gone."""
        router = replace(self.router, kept=kept)
        weights, ids = router.choose(self.logits)
        tokens = torch.arange(len(ids))
        current = _mix(self.outputs, tokens, weights, ids)
        # Tokens that an expert does not serve: only the softmax's denominator feels its removal.
        growth = self._growth(kept)
        square, product = (current * current).sum(1, keepdim=True), (current * self.target).sum(1, keepdim=True)
        unserved = (self.target * self.target).sum(1, keepdim=True) - 2 * growth * product + growth.square() * square
        unserved.scatter_(1, ids, 0.0)
        total = (self.importance.unsqueeze(1) * unserved).sum(0).double()
        # Tokens that it serves are routed again.
        rows, gone = tokens.repeat_interleave(ids.shape[1]), ids.flatten()
        left = kept.expand(len(rows), -1).scatter(1, gone.unsqueeze(1), False)
        new_weights, new_ids = replace(self.router, kept=left).choose(self.logits[rows])
        served = (_mix(self.outputs, rows, new_weights, new_ids) - self.target[rows]).square().sum(1)
        total.scatter_add_(0, gone, (self.importance[rows] * served).double())
        return total.masked_fill(~kept, torch.inf).numpy()

    def _growth(self, kept: Tensor) -> Tensor:
        """Factor [T, E] on the output of tokens that an expert does not serve once it is gone."""
        shape = self.router.shape
        if shape.scoring == "sigmoid" or shape.renormalize:
            return torch.ones_like(self.logits)
        return 1 / (1 - self.logits.masked_fill(~kept, -torch.inf).softmax(dim=1)).clamp(min=1e-6)


def _mix(outputs: Tensor, rows: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """Sum of expert outputs [T, E, H] of the tokens `rows` [n] with weights and ids [n, k]: [n, H]."""
    mixed = torch.zeros(len(rows), outputs.shape[2])
    for slot in range(ids.shape[1]):
        mixed += outputs[rows, ids[:, slot]] * weights[:, slot : slot + 1]
    return mixed
