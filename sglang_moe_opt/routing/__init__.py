"""Expert skipping on a layer's routing: one interface, a torch reference for CPU and a Triton kernel for GPUs."""

from __future__ import annotations

from torch import Tensor

from sglang_moe_opt.routing import consolidate as consolidate_reference
from sglang_moe_opt.routing import reference
from sglang_moe_opt.routing.base import MASS, ApplySkip, Choice, RoutingStats, RoutingTable
from sglang_moe_opt.routing.compact import compact
from sglang_moe_opt.routing.consolidation import ActiveSet, Consolidate, ConsolidationTable, FillRule


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
    """Drop routed slots in place, by the implementation for ``weights``' device; see :class:`ApplySkip`."""
    implementation: ApplySkip = reference.apply_skip
    if weights.is_cuda:
        # Imported late: Triton is absent on machines without an accelerator.
        from sglang_moe_opt.routing import triton_kernel

        implementation = triton_kernel.apply_skip
    implementation(
        weights,
        ids,
        choice,
        rows,
        table,
        layer,
        logical_ids=logical_ids,
        num_shared=num_shared,
        stats=stats,
        dynamic=dynamic,
        scale=scale,
    )


def consolidate_step(
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
    """Consolidate in place, by the implementation for ``weights``' device; see :class:`Consolidate`."""
    implementation: Consolidate = consolidate_reference.consolidate
    if weights.is_cuda:
        from sglang_moe_opt.routing import consolidate_triton

        implementation = consolidate_triton.consolidate
    implementation(
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


__all__ = [
    "MASS",
    "ActiveSet",
    "ApplySkip",
    "Choice",
    "Consolidate",
    "ConsolidationTable",
    "FillRule",
    "RoutingStats",
    "RoutingTable",
    "apply_skip",
    "compact",
    "consolidate_step",
]
