"""``apply_skip`` in plain torch: static shapes and no host sync; the path taken on CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_moe_opt.routing.base import Choice, RoutingStats, RoutingTable
from sglang_moe_opt.routing.choice import slot_scores

# The same guard as the routers' own renormalisation: kept weights that are all 0 stay 0 instead of becoming NaN.
TINY_MASS = 1e-20


def apply_skip(
    weights: Tensor,
    ids: Tensor,
    choice: Choice,
    rows: Tensor,
    table: RoutingTable,
    layer: int,
    *,
    logical_ids: Tensor | None = None,
    num_shared: int = 0,
    stats: RoutingStats | None = None,
    dynamic: bool = True,
    scale: float = 1.0,
) -> None:
    """Drop routed slots in place; see :class:`~sglang_moe_opt.routing.base.ApplySkip`."""
    num_tokens, width = ids.shape
    num_slots = width - num_shared
    weights, ids = weights[:, :num_slots], ids[:, :num_slots]
    rows = rows[:num_tokens]

    valid = ids >= 0
    experts = ids
    if logical_ids is not None:
        experts = logical_ids[:, :num_slots]
        valid &= experts >= 0
    experts = experts.clamp(min=0).long()

    order = _choice_order(slot_scores(choice, experts), valid)
    below_cap = torch.arange(num_slots, device=ids.device) < _per_token(table.na, layer, rows)
    keep = torch.empty_like(valid).scatter_(1, order, below_cap).logical_and_(valid)
    if dynamic:
        keep &= _passes_weight_rules(torch.where(valid, weights, 0.0), order, table, layer, rows, scale)

    dropped = keep ^ valid
    kept_weights = torch.where(keep, weights, 0.0)
    kept_mass = kept_weights.sum(-1, keepdim=True)
    dropped_mass = torch.where(dropped, weights, 0.0).sum(-1, keepdim=True)
    rescale = _per_token(table.rescale, layer, rows)
    # 1 + dropped / kept is (whole mass) / kept, and exactly 1 in a row that drops nothing.
    factor = torch.where(
        rescale < 0,
        1.0 + dropped_mass / kept_mass.clamp_(min=TINY_MASS),
        torch.where(dropped.any(-1, keepdim=True), rescale, 1.0),
    )
    weights.copy_(torch.where(valid, kept_weights * factor, weights))
    if logical_ids is None:
        ids.masked_fill_(dropped, -1)
    else:
        # An expert-location table maps the dropped id -1 to a real expert: such a slot stays dropped.
        weights.masked_fill_((ids >= 0) & ~valid, 0.0)
        ids.masked_fill_(~keep, -1)

    if stats is not None:
        stats.kept[:num_tokens] += keep.sum(-1, dtype=torch.int32)
        # amax, not plain assignment: a dropped slot may carry the id of an expert that another row keeps.
        stats.touched[layer].scatter_reduce_(0, experts.flatten(), keep.flatten().int(), "amax")


def _per_token(column: Tensor, layer: int, rows: Tensor) -> Tensor:
    """Look one table column up for every token: [S, L] -> [n, 1]."""
    return column.select(1, layer).index_select(0, rows).unsqueeze(1)


def _choice_order(score: Tensor, valid: Tensor) -> Tensor:
    """Order each row's slots by descending score, ties by slot index, already dropped slots last; int64 [n, K]."""
    # A pruned expert scores -inf through its bias: clamped, so that it still ranks before a slot that is no expert.
    score = torch.where(valid, score.clamp(min=torch.finfo(score.dtype).min), -torch.inf)
    return score.argsort(dim=-1, descending=True, stable=True)


def _passes_weight_rules(
    routed_weights: Tensor, order: Tensor, table: RoutingTable, layer: int, rows: Tensor, scale: float
) -> Tensor:
    """Return the slots that ``min_ratio`` and ``top_p`` allow or ``min_na`` protects; bool [n, K].

    Args:
        routed_weights: float32 [n, K], 0 in slots that are already dropped.
        order: int64 [n, K], slots by choice rank.
        table: the schedules.
        layer: index into the table.
        rows: int32 [n].
        scale: factor that is in the weights.
    """
    min_ratio = _per_token(table.min_ratio, layer, rows)
    top_p = _per_token(table.top_p, layer, rows)
    min_na = _per_token(table.min_na, layer, rows)

    by_choice = routed_weights.gather(1, order)
    floor = torch.where(min_ratio < 0, -min_ratio * scale, min_ratio * by_choice.amax(-1, keepdim=True))
    passes = (min_ratio == 0) | (by_choice >= floor)

    # A stable sort of slots already in choice order breaks equal weights by choice rank.
    by_weight, weight_order = by_choice.sort(dim=-1, descending=True, stable=True)
    reached = by_weight.cumsum(-1)
    # Not `reached - by_weight`: that rounds twice, and the first slot must see exactly 0.
    before = torch.nn.functional.pad(reached[:, :-1], (1, 0))
    in_nucleus = (top_p >= 1) | (before < top_p * reached[:, -1:])
    passes &= torch.empty_like(passes).scatter_(1, weight_order, in_nucleus)

    passes |= torch.arange(order.shape[1], device=order.device) < min_na
    return torch.empty_like(passes).scatter_(1, order, passes)
