"""The routing interface: the device's schedule table, the router's choice rule, and what ``apply_skip`` promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

MASS = -1.0
"""Rescale value that keeps a token's routed weight mass: kept weights grow by (mass before) / (mass kept)."""

SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus")


@dataclass(frozen=True)
class RoutingTable:
    """What each schedule row (S) does in each MoE layer (L).

    The tensors are allocated once and only ever written in place: captured CUDA graphs hold their addresses.
    """

    na: Tensor
    """int32 [S, L]: cap on kept routed slots, 0..top_k."""
    min_ratio: Tensor
    """float32 [S, L]: keep a slot only while its weight >= min_ratio * the token's largest routed weight; 0 = off.
    Below 0: only while its weight >= -min_ratio (a schedule's ``min_weight``)."""
    top_p: Tensor
    """float32 [S, L]: keep the smallest set, by weight, whose share of the routed weight reaches top_p; >= 1 = off."""
    min_na: Tensor
    """int32 [S, L]: the two rules above never touch the first ``min_na`` slots by choice score (``na`` still does)."""
    rescale: Tensor
    """float32 [S, L]: ``MASS``, or a factor on the kept weights (1 = none)."""

    @classmethod
    def allocate(cls, num_rows: int, num_layers: int, device: torch.device | str) -> RoutingTable:
        """Return a table of ``num_rows`` rows that drop every routed expert."""
        shape = (num_rows, num_layers)
        return cls(
            na=torch.zeros(shape, dtype=torch.int32, device=device),
            min_ratio=torch.zeros(shape, dtype=torch.float32, device=device),
            top_p=torch.ones(shape, dtype=torch.float32, device=device),
            min_na=torch.zeros(shape, dtype=torch.int32, device=device),
            rescale=torch.ones(shape, dtype=torch.float32, device=device),
        )

    def write_row(
        self,
        row: int,
        na: ArrayLike,
        min_ratio: ArrayLike,
        top_p: ArrayLike,
        min_na: ArrayLike,
        rescale: ArrayLike,
    ) -> None:
        """Overwrite one row in place; every argument is an array [L]."""
        write_columns(
            row,
            {
                "na": (self.na, na),
                "min_ratio": (self.min_ratio, min_ratio),
                "top_p": (self.top_p, top_p),
                "min_na": (self.min_na, min_na),
                "rescale": (self.rescale, rescale),
            },
        )


def write_columns(row: int, columns: Mapping[str, tuple[Tensor, ArrayLike]]) -> None:
    """Overwrite one row [L] of each tensor [S, L] in place, by name.

    All are checked before any is written: a bad call must not leave half a schedule behind.

    Raises:
        IndexError: there is no such row.
        ValueError: an array has another length.
    """
    values = []
    for name, (target, column) in columns.items():
        num_rows, num_layers = target.shape
        if not 0 <= row < num_rows:
            raise IndexError(f"row {row} is not in the table's 0..{num_rows - 1}")
        # A copy: torch refuses to wrap read-only arrays.
        value = np.array(column, dtype=np.int32 if target.dtype == torch.int32 else np.float32)
        if value.shape != (num_layers,):
            raise ValueError(f"{name} has shape {value.shape}; the table has {num_layers} layers")
        values.append((target, value))
    for target, value in values:
        target[row].copy_(torch.from_numpy(value))


@dataclass(frozen=True)
class Choice:
    """How the router ranks the experts of a token: the score it selects by, which is not always the weight."""

    logits: Tensor
    """[n, E] router logits, bf16, fp16 or fp32."""
    bias: Tensor | None
    """[E] correction bias added to the score, or None."""
    scoring: str
    """"softmax", "sigmoid" or "sqrtsoftplus"."""

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring {self.scoring!r} is not supported; supported: {', '.join(SCORINGS)}")


@dataclass(frozen=True)
class RoutingStats:
    """Device counters that ``apply_skip`` adds to."""

    kept: Tensor
    """int32 [max_tokens]: each row's number of kept routed slots is added, so it accumulates over layers."""
    touched: Tensor
    """int32 [L, E]: set to 1 for every routed expert (logical id) that at least one row keeps."""
    filled: Tensor | None = None
    """int32 [max_tokens]: of the kept slots, those that ``consolidate`` gave to an expert the router had not chosen."""


class ApplySkip(Protocol):
    """Drop routed slots as each token's schedule row says, in place.

    Slots are unsorted; of the K columns the last ``num_shared`` are fused shared experts and are neither read nor
    changed. A slot that is already -1 is not counted, not ranked and left as it is. Kept slots are those ranked
    below ``na`` by choice score (ties: lower slot first) that also pass ``min_ratio`` and ``top_p`` or rank below
    ``min_na``. A dropped slot gets id -1 and weight 0; the kept weights of a row that dropped a slot are rescaled
    (``MASS`` leaves kept weights that sum to 0 at 0); a row that drops nothing stays bit for bit.
    """

    def __call__(
        self,
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
        """Apply the schedules to one layer's routing.

        Args:
            weights: float32 [n, K], changed in place.
            ids: int32 or int64 [n, K], changed in place; physical ids where experts are load-balanced.
            choice: the router's logits and ranking rule for these n tokens.
            rows: int32 [>= n], each token's row of the table.
            table: the schedules.
            layer: index of this MoE layer in the table.
            logical_ids: [n, K] ids that index ``choice.logits``; default ``ids``.
            num_shared: fused shared-expert columns at the end.
            stats: counters to add to.
            dynamic: False promises that no row uses ``min_ratio`` or ``top_p``, and skips their work.
            scale: factor that is in the weights (``routed_scaling_factor``); ``min_weight`` is meant without it.
        """
        ...
