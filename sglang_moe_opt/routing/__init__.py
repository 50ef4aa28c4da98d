"""Expert skipping on a layer's routing: one interface, a torch reference for CPU and a Triton kernel for GPUs."""

from __future__ import annotations

from torch import Tensor

from sglang_moe_opt.routing import reference
from sglang_moe_opt.routing.base import MASS, ApplySkip, Choice, RoutingStats, RoutingTable
from sglang_moe_opt.routing.compact import compact


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
    )


__all__ = ["MASS", "ApplySkip", "Choice", "RoutingStats", "RoutingTable", "apply_skip", "compact"]
