"""``consolidate`` as two Triton launches, safe under CUDA graph capture: no host sync, fixed shapes, fixed pointers."""

from __future__ import annotations

import triton
from torch import Tensor

from sglang_moe_opt.routing.base import Choice, RoutingStats
from sglang_moe_opt.routing.consolidate_kernels import fill_kernel, mark_kernel
from sglang_moe_opt.routing.consolidation import ActiveSet, ConsolidationTable, FillRule
from sglang_moe_opt.routing.triton_kernel import BLOCK_E, row_strides

EXPERTS_PER_PROGRAM = 32
SLOTS_PER_STEP = 64
"""Slots that a program of the first launch compares with its experts at a time."""
DEMANDS_PER_STEP = 16


def launch_shapes(num_slots: int, num_experts: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tile constants of the two kernels."""
    slots = triton.next_power_of_2(num_slots)
    both = {"NUM_SLOTS": num_slots, "SLOTS": slots}
    mark = {"BLOCK_T": max(1, SLOTS_PER_STEP // slots), "BLOCK_E": BLOCK_E, "OWNED": EXPERTS_PER_PROGRAM}
    return both | mark, both | {"EXPERTS": triton.next_power_of_2(num_experts), "STEP": DEMANDS_PER_STEP}


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
    """Consolidate in place; see :class:`~sglang_moe_opt.routing.consolidation.Consolidate`.

    Rows of the [n, ...] tensors may be strided, their columns must be adjacent.
    """
    num_tokens, width = ids.shape
    num_slots, num_experts = width - num_shared, choice.logits.shape[1]
    if num_tokens == 0 or num_slots == 0:
        return
    strides = row_strides(weights, ids, logical_ids, choice)
    flags = {
        "SCORING": choice.scoring,
        "HAS_BIAS": choice.bias is not None,
        "HAS_LOGICAL_IDS": logical_ids is not None,
        "HAS_CAP": rule.max_experts > 0,
    }
    mark, fill = launch_shapes(num_slots, num_experts)
    routing = (weights, ids, logical_ids, choice.logits, choice.bias, rows)
    layers = table.k0.shape[1]
    mark_kernel[(triton.cdiv(num_experts, mark["OWNED"]),)](
        *routing,
        table.k0,
        table.na,
        scratch.ids,
        scratch.demand,
        num_tokens,
        layer,
        layers,
        num_experts,
        *strides,
        **mark,
        **flags,
    )
    counted = stats is not None and stats.filled is not None
    counters = (stats.kept, stats.filled, stats.touched) if counted and stats is not None else (None, None, None)
    fill_kernel[(num_tokens,)](
        *routing,
        table.k0,
        table.na,
        table.rescale,
        scratch.ids,
        scratch.demand,
        *counters,
        layer,
        layers,
        num_experts,
        num_experts // rule.num_groups,
        rule.max_experts,
        rule.min_share,
        *strides,
        **fill,
        **flags,
        HAS_GROUPS=rule.num_groups > 1,
        HAS_STATS=counted,
    )
