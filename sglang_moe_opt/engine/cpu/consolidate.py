"""Consolidation on the CPU kernel: in torch it is some fifty small operations for each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import native
from sglang_moe_opt.routing import ActiveSet, Choice, ConsolidationTable, FillRule, RoutingStats, consolidate_step

_SCORINGS = ("softmax", "sigmoid")


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
    """``consolidate_step``, by the kernel where it covers the tensors."""
    covered = logical_ids is None and num_shared == 0 and choice.scoring in _SCORINGS and len(ids) > 0
    if not (covered and _plain(weights, ids, choice) and native.ready()):
        consolidate_step(
            weights,
            ids,
            choice,
            rows,
            table,
            layer,
            rule=rule,
            scratch=scratch,
            logical_ids=logical_ids,
            num_shared=num_shared,
            stats=stats,
        )
        return
    num_tokens, num_slots = ids.shape
    counters = (None, None, None)
    if stats is not None and stats.filled is not None:
        counters = (stats.kept.data_ptr(), stats.filled.data_ptr(), stats.touched[layer].data_ptr())
    native.functions["consolidate"](
        weights.data_ptr(),
        ids.data_ptr(),
        choice.logits.data_ptr(),
        None if choice.bias is None else choice.bias.data_ptr(),
        rows.data_ptr(),
        *(column.data_ptr() + layer * column.element_size() for column in (table.k0, table.na, table.rescale)),
        table.k0.shape[1],
        num_tokens,
        num_slots,
        choice.logits.shape[1],
        choice.scoring == "sigmoid",
        rule.num_groups,
        rule.max_experts,
        rule.min_share,
        *counters,
    )


def _plain(weights: Tensor, ids: Tensor, choice: Choice) -> bool:
    bias = choice.bias
    floats = (weights, choice.logits) if bias is None else (weights, choice.logits, bias)
    return (
        all(t.dtype is torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in floats)
        and ids.dtype is torch.int32
        and ids.is_contiguous()
        and ids.shape[1] > 0
    )
