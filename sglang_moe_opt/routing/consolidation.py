"""Batch-aware consolidation: its schedule table, its rule, the buffers it needs, and what ``consolidate`` promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sglang_moe_opt.routing.base import Choice, RoutingStats, write_columns


@dataclass(frozen=True)
class ConsolidationTable:
    """What each schedule row (S) does in each MoE layer (L); written in place, like ``RoutingTable``.

    A row that consolidates in a layer is left alone there by ``apply_skip``: its ``na`` in that table is the top-k.
    """

    k0: Tensor
    """int32 [S, L]: the token's own first experts, which it always keeps; 0 = does not consolidate here."""
    na: Tensor
    """int32 [S, L]: routed experts that a token gets at most, above k0."""
    rescale: Tensor
    """float32 [S, L]: ``MASS``, or a factor on the weights of a token whose experts changed (1 = none)."""

    @classmethod
    def allocate(cls, num_rows: int, num_layers: int, device: torch.device | str) -> ConsolidationTable:
        """Return a table in which no row consolidates."""
        shape = (num_rows, num_layers)
        return cls(
            k0=torch.zeros(shape, dtype=torch.int32, device=device),
            na=torch.zeros(shape, dtype=torch.int32, device=device),
            rescale=torch.ones(shape, dtype=torch.float32, device=device),
        )

    def write_row(self, row: int, k0: ArrayLike, na: ArrayLike, rescale: ArrayLike) -> None:
        """Overwrite one row in place; every argument is an array [L]."""
        write_columns(row, {"k0": (self.k0, k0), "na": (self.na, na), "rescale": (self.rescale, rescale)})


@dataclass(frozen=True)
class FillRule:
    """How free slots are filled, the same for all tokens of a layer.

    Attributes:
        max_experts: up to so many distinct experts, the step also activates those that its consolidating tokens would
            have kept without consolidation, the largest sum of router weights first; 0 activates none beyond the
            tokens' own first k0. Experts that some token keeps anyway count, and are never taken away.
        min_share: a slot is filled only with an expert of at least this share of the token's largest routed weight.
        num_groups: of a group-limited router, where a token is to be filled only from groups that its router chose
            from; 1 lets it be filled from all.
    """

    max_experts: int = 0
    min_share: float = 0.0
    num_groups: int = 1


@dataclass(frozen=True)
class ActiveSet:
    """Scratch of one layer's step, at a fixed address for CUDA graphs; layers use it one after the other.

    ``ids`` int32 [2, E]: by logical expert the id that some token keeps, and the id that a consolidating token would
    have kept; -1 = none. ``demand`` float32 [E]: router weight behind the second.
    """

    ids: Tensor
    demand: Tensor

    @classmethod
    def allocate(cls, num_experts: int, device: torch.device | str) -> ActiveSet:
        return cls(
            torch.full((2, num_experts), -1, dtype=torch.int32, device=device),
            torch.zeros(num_experts, dtype=torch.float32, device=device),
        )


class Consolidate(Protocol):
    """Keep each consolidating token's first k0 experts, and fill its slots up to ``na`` from the step's active experts.

    Runs behind ``apply_skip`` on all tokens of a step. Experts are *active* when some token keeps them: any slot of a
    token that does not consolidate, the first k0 by choice score of one that does, and what ``max_experts`` adds. A
    consolidating token gets the best active experts by choice score: first those among its own slots (ties: lower
    slot), then others (ties: lower id). Own experts above rank ``na`` and others are *fills*: they must reach
    ``min_share``; others must be in a group of the token's own slots and have a finite score.

    A fill's weight is what the router gives that expert beside the token's own: own weight x ratio of the router's
    scores (softmax, sigmoid, ...), so a scaling factor in the weights is in the fills too. Where a token's experts
    changed, its weights are then rescaled: ``MASS`` restores the routed mass, which is the renormalisation over the
    new set. Others go into the freed slots in ascending order, best first; slots that stay empty get id -1 and weight
    0. Tokens that do not consolidate, slots that are -1 already (padding), and tokens whose experts all stay, keep
    every bit. Ids may be physical: a fill goes to a replica that the step uses.
    """

    def __call__(
        self,
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
        """Consolidate one layer's routing; the arguments are those of ``apply_skip``.

        Args:
            weights: float32 [n, K], changed in place.
            ids: int32 or int64 [n, K], changed in place.
            choice: the router's logits and ranking rule.
            rows: int32 [>= n].
            table: which rows consolidate, and how.
            layer: index of this MoE layer in the table.
            rule: how slots are filled.
            scratch: overwritten.
            logical_ids: [n, K] ids that index ``choice.logits``; default ``ids``.
            num_shared: fused shared-expert columns at the end, neither read nor changed.
            stats: counters to add to, for all tokens of the step.
        """
        ...
