"""``consolidate`` in plain torch: static shapes and no host sync; the path taken on CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_moe_opt.routing.base import Choice, RoutingStats
from sglang_moe_opt.routing.choice import router_scores, slot_scores
from sglang_moe_opt.routing.consolidation import ActiveSet, ConsolidationTable, FillRule
from sglang_moe_opt.routing.reference import TINY_MASS


def consolidate(
    weights: Tensor,
    ids: Tensor,
    choice: Choice,
    rows: Tensor,
    table: ConsolidationTable,
    layer: int,
    *,
    rule: FillRule,
    scratch: ActiveSet,
    logical_ids: Tensor | None = None,
    num_shared: int = 0,
    stats: RoutingStats | None = None,
) -> None:
    """Consolidate in place; see :class:`~sglang_moe_opt.routing.consolidation.Consolidate`."""
    num_tokens, width = ids.shape
    num_slots = width - num_shared
    if num_tokens == 0 or num_slots == 0:
        return
    weights, ids = weights[:, :num_slots], ids[:, :num_slots]
    experts = ids
    if logical_ids is not None:
        # A slot without a logical expert may carry a real id: it is no expert, and is left as it is.
        experts = torch.where(ids >= 0, logical_ids[:, :num_slots], -1)
    columns = (c.select(1, layer).index_select(0, rows[:num_tokens]) for c in (table.k0, table.na, table.rescale))
    every = torch.arange(choice.logits.shape[1], device=ids.device).expand(num_tokens, -1)
    result = fill(
        weights,
        ids.long(),
        experts.long(),
        slot_scores(choice, every),
        router_scores(choice),
        *columns,
        rule=rule,
    )
    weights.copy_(result.weights)
    ids.copy_(result.ids)
    if stats is not None:
        stats.kept[:num_tokens] += result.kept.sum(-1, dtype=torch.int32)
        if stats.filled is not None:
            stats.filled[:num_tokens] += result.filled.sum(-1, dtype=torch.int32)
        kept = result.kept.flatten().int()
        stats.touched[layer].scatter_reduce_(0, result.experts.clamp(min=0).flatten(), kept, "amax")


@dataclass(frozen=True)
class Filled:
    """A step after consolidation, each [..., n, K].

    Attributes:
        weights: float32; ids: int64, -1 where nothing is computed; experts: int64, the logical ids.
        kept: bool, slots that are computed; filled: bool, those whose expert the router had not chosen.
    """

    weights: Tensor
    ids: Tensor
    experts: Tensor
    kept: Tensor
    filled: Tensor


def fill(
    weights: Tensor,
    ids: Tensor,
    experts: Tensor,
    scores: Tensor,
    shares: Tensor,
    k0: Tensor,
    na: Tensor,
    rescale: Tensor,
    *,
    rule: FillRule,
) -> Filled:
    """The rule itself, for any number of steps at once: leading dimensions are steps apart.

    Args:
        weights: float32 [..., n, K].
        ids: int64 [..., n, K], what the experts are called where they run.
        experts: int64 [..., n, K], what the router calls them; -1 = no expert.
        scores: float32 [..., n, E], choice scores.
        shares: float32 [..., n, E], what the weights are proportional to.
        k0: int32 [..., n], 0 = does not consolidate.
        na: int32 [..., n].
        rescale: float32 [..., n].
        rule: see there.
    """
    num_slots, num_experts = weights.shape[-1], scores.shape[-1]
    k0, na, rescale = k0.unsqueeze(-1), na.unsqueeze(-1), rescale.unsqueeze(-1)
    valid = (ids >= 0) & (experts >= 0)
    index = torch.where(valid, experts, 0)
    joins = k0 > 0

    rank = _rank(scores.gather(-1, index), valid)
    own = valid & (~joins | (rank < k0))
    active = _by_expert(torch.where(own, ids, -1), index, num_experts)
    if rule.max_experts:
        active = _with_demanded(active, weights, ids, index, valid & joins & (rank >= k0) & (rank < na), rule)

    routed = torch.where(valid, weights, 0.0)
    heaviest, reference = torch.where(valid, weights, -1.0).max(-1, keepdim=True)
    ratio = shares / shares.gather(-1, index.gather(-1, reference)).clamp(min=TINY_MASS)

    is_active = active.unsqueeze(-2).expand_as(scores).gather(-1, index) >= 0
    as_fill = is_active & (routed >= rule.min_share * heaviest)
    eligible = valid & ((rank < k0) | torch.where(rank < na, is_active, as_fill))
    ahead = (eligible.unsqueeze(-2) & (rank.unsqueeze(-2) < rank.unsqueeze(-1))).sum(-1)
    keep = torch.where(joins, eligible & (ahead < na), valid)

    others = joins & (active >= 0).unsqueeze(-2) & (scores > -torch.inf) & (ratio >= rule.min_share)
    others &= ~_at(valid, index, num_experts)
    if rule.num_groups > 1:
        groups = index // (num_experts // rule.num_groups)
        chosen = _at(valid, groups, rule.num_groups)
        others &= chosen.repeat_interleave(num_experts // rule.num_groups, dim=-1)
    best = torch.where(others, scores, -torch.inf).argsort(dim=-1, descending=True, stable=True)

    free = valid & ~keep
    place = free.cumsum(-1) - 1
    room = torch.minimum(na - keep.sum(-1, keepdim=True), others.sum(-1, keepdim=True))
    filled = free & joins & (place < room)
    chosen_expert = best[..., :num_slots].gather(-1, place.clamp(0, min(num_slots, num_experts) - 1))
    kept = keep | filled

    new_experts = torch.where(filled, chosen_expert, torch.where(kept, experts, -1))
    new_ids = active.unsqueeze(-2).expand_as(scores).gather(-1, chosen_expert)
    fill_weights = heaviest * ratio.gather(-1, chosen_expert)
    new_weights = torch.where(filled, fill_weights, torch.where(keep, routed, 0.0))
    mass, kept_mass = routed.sum(-1, keepdim=True), new_weights.sum(-1, keepdim=True)
    factor = torch.where(rescale < 0, mass / kept_mass.clamp(min=TINY_MASS), rescale)
    changed = free.any(-1, keepdim=True)
    new_weights = torch.where(changed, new_weights * factor, new_weights)
    return Filled(
        weights=torch.where(valid, new_weights, weights),
        ids=torch.where(filled, new_ids, torch.where(free, -1, ids)),
        experts=new_experts,
        kept=kept,
        filled=filled,
    )


def _rank(score: Tensor, valid: Tensor) -> Tensor:
    """Each slot's place by descending score, ties by slot, invalid slots last; int64 [..., K]."""
    # A pruned expert scores -inf through its bias: clamped, so that it still ranks before a slot that is no expert.
    score = torch.where(valid, score.clamp(min=torch.finfo(score.dtype).min), -torch.inf)
    order = score.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).to(order).expand_as(order))


def _by_expert(ids: Tensor, index: Tensor, num_experts: int) -> Tensor:
    """The largest id of each expert over a step's slots, -1 where there is none; [..., n, K] to [..., E]."""
    found = ids.new_full((*ids.shape[:-2], num_experts), -1)
    return found.scatter_reduce_(-1, index.flatten(-2), ids.flatten(-2), "amax")


def _at(valid: Tensor, index: Tensor, size: int) -> Tensor:
    """Which of ``size`` places some valid slot of the token points to; [..., n, K] to bool [..., n, size]."""
    found = torch.zeros((*valid.shape[:-1], size), dtype=torch.int32, device=valid.device)
    return found.scatter_reduce_(-1, index, valid.int(), "amax") > 0


def _with_demanded(
    active: Tensor, weights: Tensor, ids: Tensor, index: Tensor, wanted: Tensor, rule: FillRule
) -> Tensor:
    """The active experts and, up to ``max_experts``, those that consolidating tokens want most."""
    num_experts = active.shape[-1]
    wanted_ids = _by_expert(torch.where(wanted, ids, -1), index, num_experts)
    demand = weights.new_zeros(active.shape)
    demand.scatter_add_(-1, index.flatten(-2), torch.where(wanted, weights, 0.0).flatten(-2))
    candidate = (active < 0) & (wanted_ids >= 0)
    order = torch.where(candidate, demand, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(num_experts).to(order).expand_as(order))
    room = rule.max_experts - (active >= 0).sum(-1, keepdim=True)
    return torch.where(candidate & (place < room), wanted_ids, active)
