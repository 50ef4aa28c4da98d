"""What the scheduler process knows about skipping: the model's shape, the routing table and the step under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from sglang_moe_opt.engine.auto import AutoLevels
from sglang_moe_opt.engine.consolidation import Consolidator
from sglang_moe_opt.engine.rows import FULL_ROW, NONE_ROW, ROW_CAPACITY, RowCache, check_capacity
from sglang_moe_opt.hints import ResolvedHint
from sglang_moe_opt.layer_table import MASS, LayerTable
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.routing import RoutingStats, RoutingTable

if TYPE_CHECKING:
    from sglang_moe_opt.engine.metrics import StepMetrics


@dataclass
class StepPlan:
    """Which table row each token of one forward pass runs under.

    Attributes:
        token_rows: int32 [num_tokens].
        tables: the schedules that occur, by row; the full model is left out.
        tokens_by_row: how many tokens each row has.
    """

    token_rows: np.ndarray
    tables: dict[int, LayerTable]
    tokens_by_row: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        counts = np.bincount(self.token_rows)
        self.tokens_by_row = {row: int(counts[row]) for row in np.flatnonzero(counts).tolist()}
        self.tables = {row: table for row, table in self.tables.items() if row in self.tokens_by_row}


@dataclass
class Step:
    """The forward pass under way.

    Attributes:
        active: some token may drop an expert; False lets the hooks return at once (never under CUDA graphs).
        dynamic: some schedule depends on the router weights.
        uniform: per MoE layer the top-k under which every token of the step runs; the router itself is then asked for
            so many experts, and nothing is left to drop. None where tokens differ, and always under CUDA graphs.
        width: per MoE layer the largest number of routed slots any token keeps; None where it is not known.
        sample: this step's distinct experts are counted.
        drops: some schedule drops experts by itself, without regard to the batch.
        consolidates: some token's experts depend on the batch.
    """

    active: bool = False
    drops: bool = False
    consolidates: bool = False
    dynamic: bool = False
    uniform: np.ndarray | None = None
    width: np.ndarray | None = None
    sample: bool = False
    num_tokens: int = 0
    index: int = 0


@dataclass
class EngineState:
    """One per scheduler process; device tensors keep their address for the life of the process (CUDA graphs)."""

    shape: MoEShape
    policy: Policy
    default: ResolvedHint
    device: torch.device
    table: RoutingTable
    token_rows: torch.Tensor
    stats: RoutingStats
    always_on: bool
    auto: AutoLevels
    rows: RowCache = field(default_factory=lambda: RowCache(ROW_CAPACITY))
    step: Step = field(default_factory=Step)
    layer_index: dict[int, int] = field(default_factory=dict)
    metrics: StepMetrics | None = None
    consolidator: Consolidator | None = None

    @classmethod
    def create(
        cls,
        shape: MoEShape,
        policy: Policy,
        default: ResolvedHint,
        device: str,
        max_tokens: int,
        graph_sizes: Sequence[int] = (),
    ) -> EngineState:
        """Allocate the table for ``shape`` on ``device``; ``max_tokens`` is the longest forward pass.

        ``graph_sizes``: batch sizes of the decode graphs that will be captured.

        Raises:
            PolicyError: the policy lets more schedules into one batch than the table has rows.
        """
        check_capacity(policy)
        dev = torch.device(device)
        layers = len(shape.moe_layer_ids)
        table = RoutingTable.allocate(ROW_CAPACITY, layers, dev)
        consolidates = policy.consolidation
        ones = np.ones(layers, np.float32)
        zeros = np.zeros(layers, np.float32)
        for row, na in ((NONE_ROW, 0), (FULL_ROW, shape.top_k)):
            table.write_row(row, np.full(layers, na, np.int32), zeros, ones, np.zeros(layers, np.int32), ones)
        return cls(
            shape=shape,
            policy=policy,
            default=default,
            device=dev,
            table=table,
            token_rows=torch.full((max_tokens,), NONE_ROW, dtype=torch.int32, device=dev),
            stats=RoutingStats(
                kept=torch.zeros(max_tokens, dtype=torch.int32, device=dev),
                touched=torch.zeros((layers, shape.num_experts), dtype=torch.int32, device=dev),
                filled=None if consolidates is None else torch.zeros(max_tokens, dtype=torch.int32, device=dev),
            ),
            always_on=dev.type != "cpu",
            consolidator=None
            if consolidates is None
            else Consolidator.create(consolidates, ROW_CAPACITY, layers, shape.num_experts, dev, graph_sizes),
            layer_index={layer_id: i for i, layer_id in enumerate(shape.moe_layer_ids)},
            auto=AutoLevels.of(policy, shape),
            # Graphs are captured before the first step begins, and must hold every kernel that a step may need.
            step=Step(active=True, drops=True, dynamic=True, consolidates=consolidates is not None)
            if dev.type != "cpu"
            else Step(),
        )

    def begin_step(self, plan: StepPlan | None, num_tokens: int, sample: bool = False) -> None:
        """Write the step's rows to the device. Runs on the forward stream, so it is ordered with graph replays.

        Raises:
            RuntimeError: the pass is longer than the buffer that captured graphs point to.
        """
        for row, t in self.rows.take_pending():
            self._write_row(row, t)
        tables = {} if plan is None else plan.tables
        step = self.step
        step.index += 1
        step.num_tokens = num_tokens
        step.sample = sample
        step.uniform = None if self.always_on else self._uniform(plan)
        step.active = self.always_on or (bool(tables) and step.uniform is None)
        step.dynamic = self.always_on or any(t.weighs for t in tables.values())
        step.consolidates = self.consolidator is not None and (
            self.always_on or any(t.consolidates for t in tables.values())
        )
        step.drops = self.always_on or any(t.drops for t in tables.values())
        step.width = None if self.always_on else self._width(plan, tables)
        if sample:
            self.stats.touched.zero_()
        if not step.active:
            return
        self._reserve(num_tokens)
        if plan is None:
            self.token_rows[:num_tokens].fill_(FULL_ROW)
        else:
            self.token_rows[:num_tokens].copy_(torch.from_numpy(plan.token_rows), non_blocking=True)
        if self.always_on:
            # The graph replays over its whole bucket: rows behind the batch must count as padding.
            self.token_rows[num_tokens:].fill_(NONE_ROW)

    def _reserve(self, num_tokens: int) -> None:
        if num_tokens <= len(self.token_rows):
            return
        if self.always_on:
            raise RuntimeError(
                f"sglang-moe-opt: a forward pass of {num_tokens} tokens exceeds the {len(self.token_rows)} reserved; "
                "lower --max-prefill-tokens"
            )
        self.token_rows = self.token_rows.new_full((num_tokens,), NONE_ROW)
        kept, filled = self.stats.kept.new_zeros(num_tokens), self.stats.filled
        filled = None if filled is None else filled.new_zeros(num_tokens)
        self.stats = RoutingStats(kept, self.stats.touched, filled)

    def _write_row(self, row: int, schedule: LayerTable) -> None:
        """Where a schedule consolidates, ``apply_skip`` leaves its tokens alone."""
        joins = schedule.own_first > 0
        na, rescale = np.where(joins, self.shape.top_k, schedule.na), np.where(joins, 1, schedule.rescale)
        self.table.write_row(row, na, schedule.min_ratio, schedule.top_p, schedule.min_na, rescale)
        if self.consolidator is not None:
            self.consolidator.write_row(row, schedule)

    def _uniform(self, plan: StepPlan | None) -> np.ndarray | None:
        if plan is None or len(plan.tables) != 1:
            return None
        ((row, table),) = plan.tables.items()
        as_router = MASS if self.shape.renormalize else 1.0
        as_written = (
            table.is_static and table.na.min() > 0 and (table.rescale[table.na < self.shape.top_k] == as_router).all()
        )
        return table.na if as_written and plan.tokens_by_row.keys() == {row} else None

    def _width(self, plan: StepPlan | None, tables: dict[int, LayerTable]) -> np.ndarray | None:
        if plan is None or not tables or FULL_ROW in plan.tokens_by_row:
            return None
        return np.max([t.na for t in tables.values()], axis=0)


_state: EngineState | None = None


def get_state() -> EngineState | None:
    """The process's state; None in processes without a model and where skipping is not configured."""
    return _state


def set_state(state: EngineState | None) -> None:
    global _state
    _state = state
