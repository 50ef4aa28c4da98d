"""Merging: removed experts are taken up by kept ones, instead of being dropped.

Every removed expert joins the kept one that is most like it, by what the router does with its tokens or by the experts'
outputs. The experts of such a cluster then become one, in either of two ways:

average: the mean of their weights, by how often the router chooses them, after the neurons of each have been permuted
    to match those of the kept one (a neuron is a row of the gate and up projections and a column of the down
    projection; which goes where does not matter to an expert's output, but does to a mean).
neurons: the neurons with the most energy among all of the cluster's, as many as the kept one has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sglang_moe_opt.pruning.moe_layer import MoELayer, SwiGLU

Similarity = Literal["router", "output"]
Method = Literal["average", "neurons"]


@torch.no_grad()
def merge(
    layer: MoELayer, kept: Sequence[int], x: Tensor, *, method: Method = "average", similarity: Similarity = "router"
) -> dict[int, SwiGLU]:
    """The kept experts that take others up, by id, in float32.

    Args:
        layer: the full layer.
        kept: ids of the experts that stay.
        x: sampled inputs [T, H] of the layer.
        method: how a cluster becomes one expert.
        similarity: what decides which kept expert a removed one joins.
    """
    served = {expert: (tokens, weights) for expert, tokens, weights in layer.served(x)}
    clusters: dict[int, list[int]] = {}
    for removed, home in assign(layer, kept, x, similarity).items():
        if removed in served:
            clusters.setdefault(home, [home]).append(removed)
    merged = {}
    for home, members in clusters.items():
        experts = [layer.expert(member) for member in members]
        if method == "average":
            shares = torch.tensor([float(len(served[member][0])) if member in served else 0.0 for member in members])
            aligned = [experts[0], *(align(expert, experts[0]) for expert in experts[1:])]
            merged[home] = SwiGLU(*(_mean(parts, shares / shares.sum()) for parts in zip(*aligned, strict=True)))
        else:
            energies = [
                energy(expert, x[served[member][0]], served[member][1])
                if member in served
                else torch.zeros(expert.gate.shape[0])
                for member, expert in zip(members, experts, strict=True)
            ]
            best = torch.cat(energies).topk(experts[0].gate.shape[0]).indices.sort().values
            gates, ups, downs = zip(*experts, strict=True)
            merged[home] = SwiGLU(torch.cat(gates)[best], torch.cat(ups)[best], torch.cat(downs, dim=1)[:, best])
    return merged


def assign(layer: MoELayer, kept: Sequence[int], x: Tensor, similarity: Similarity) -> dict[int, int]:
    """Removed expert -> the kept one that it is most like, on inputs [T, H].

    router: the one with the most weight on its tokens once they are routed among the kept ones, each token counted by
    the weight that the removed expert has there. output: the one with the highest mean cosine of outputs on its tokens.
    """
    ids = torch.tensor(sorted(kept))
    weights, chosen = layer.keeping(tuple(ids.tolist())).router(x)
    after = torch.zeros(len(x), layer.router.shape.num_experts).scatter_(1, chosen, weights)[:, ids]
    homes = {}
    for expert, tokens, factors in layer.served(x):
        if expert in ids:
            continue
        if similarity == "router":
            likeness = factors @ after[tokens]
        else:
            own = layer.expert(expert)(x[tokens])
            likeness = torch.stack(
                [torch.cosine_similarity(own, layer.expert(other)(x[tokens])).mean() for other in ids.tolist()]
            )
        homes[expert] = int(ids[likeness.argmax()])
    return homes


def align(expert: SwiGLU, like: SwiGLU) -> SwiGLU:
    """The same expert with its neurons in the order in which they are most like those of another one.

    Likeness of two neurons is the sum of the cosines of their gate rows, up rows and down columns; the best one-to-one
    match is found by the Hungarian method.
    """
    likeness = sum(
        torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).t()
        for a, b in zip(_rows(like), _rows(expert), strict=True)
    )
    order = torch.as_tensor(linear_sum_assignment(likeness.numpy(), maximize=True)[1])
    return SwiGLU(expert.gate[order], expert.up[order], expert.down[:, order])


def energy(expert: SwiGLU, x: Tensor, weights: Tensor) -> Tensor:
    """Summed square of what each neuron adds to the outputs of its tokens [n, H] with weights [n]: [I]."""
    hidden = expert.hidden(x) * weights.unsqueeze(1)
    return hidden.square().sum(0) * expert.down.square().sum(0)


def _rows(expert: SwiGLU) -> tuple[Tensor, Tensor, Tensor]:
    return expert.gate, expert.up, expert.down.t()


def _mean(parts: Sequence[Tensor], shares: Tensor) -> Tensor:
    return torch.stack([part * share for part, share in zip(parts, shares, strict=True)]).sum(0)
