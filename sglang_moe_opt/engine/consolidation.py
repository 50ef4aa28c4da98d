"""Batch-aware consolidation in the engine: its device buffers, and which steps consolidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.policy import Consolidation
from sglang_moe_opt.routing import ActiveSet, Choice, ConsolidationTable, FillRule, RoutingStats


@dataclass(frozen=True)
class Consolidator:
    """What a scheduler process needs to consolidate; device tensors keep their address for its life (CUDA graphs).

    Attributes:
        policy: its limits.
        table: by row of the engine's table, what consolidates.
        scratch: of the layer under way.
        longest: rows of the longest forward pass that is consolidated, the padding of a captured graph included.
    """

    policy: Consolidation
    table: ConsolidationTable
    scratch: ActiveSet
    longest: int

    @classmethod
    def create(
        cls,
        policy: Consolidation,
        num_rows: int,
        num_layers: int,
        num_experts: int,
        device: torch.device,
        graph_sizes: Sequence[int] = (),
    ) -> Consolidator:
        """Allocate; ``graph_sizes`` are the batch sizes of captured decode graphs, to which a batch is padded."""
        longest = min((size for size in graph_sizes if size >= policy.max_batch), default=policy.max_batch)
        return cls(
            policy,
            ConsolidationTable.allocate(num_rows, num_layers, device),
            ActiveSet.allocate(num_experts, device),
            longest,
        )

    def write_row(self, row: int, schedule: LayerTable) -> None:
        """Put a schedule into the table, in place of what the row held."""
        self.table.write_row(row, schedule.own_first, schedule.na, schedule.rescale)

    def covers(self, num_tokens: int, is_decode: bool) -> bool:
        """Whether the tokens of this forward pass consolidate: others run the rule plainly."""
        return is_decode and num_tokens <= self.policy.max_batch

    def apply(
        self,
        weights: Tensor,
        ids: Tensor,
        choice: Choice,
        rows: Tensor,
        layer: int,
        topk_config: Any,
        logical_ids: Tensor | None,
        stats: RoutingStats,
    ) -> None:
        """Consolidate one layer's routing in place, behind ``apply_skip``."""
        # Imported late: the CPU package knows the engine's state, which holds this object.
        from sglang_moe_opt.engine.cpu.consolidate import consolidate

        consolidate(
            weights,
            ids,
            choice,
            rows,
            self.table,
            layer,
            rule=FillRule(
                max_experts=self.policy.max_experts or 0,
                min_share=self.policy.min_share,
                num_groups=(topk_config.num_expert_group or 1) if self.policy.stay_in_groups else 1,
            ),
            scratch=self.scratch,
            logical_ids=logical_ids,
            num_shared=topk_config.num_shared_topk_slots,
            stats=stats,
        )
