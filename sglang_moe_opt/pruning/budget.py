"""How many experts each layer keeps: the same in all, or one budget spread over layers where it saves the most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.pruning.ranking import Ranking


@dataclass(frozen=True)
class Budget:
    """Kept experts.

    Attributes:
        keep: per layer; on average over layers where `spread`.
        spread: layers may differ: the sum of their losses is the least that this many experts allow.
        equal_groups: groups of a layer keep the same number each; else `mask` semantics and whatever scores ask for.
    """

    keep: int
    spread: bool = False
    equal_groups: bool = True

    def check(self, shape: MoEShape, allowed: tuple[int, ...]) -> None:
        """Raise FieldError unless `keep` can be had; `allowed` are the counts of a single layer."""
        if self.keep in allowed:
            return
        step = allowed[1] - allowed[0] if len(allowed) > 1 else 1
        if self.spread and allowed[0] <= self.keep <= allowed[-1] and self.keep * shape.num_moe_layers % step == 0:
            return
        multiples = f" in multiples of {step}, one for each of the router's groups" if step > 1 else ""
        raise FieldError("keep", self.keep, f"{allowed[0]} to {allowed[-1]}{multiples}")

    def counts(self, ranking: Ranking, shape: MoEShape, loss: NDArray[np.float64] | None) -> NDArray[np.int64]:
        """Kept experts of each layer: int64 [L].

        Args:
            ranking: the layers' experts.
            shape: of the full model.
            loss: float64 [L, len(ranking.counts)], what each layer loses at each count; read where `spread`.
        """
        self.check(shape, ranking.counts)
        if not self.spread:
            return np.full(shape.num_moe_layers, self.keep, np.int64)
        if loss is None:
            raise ValueError("loss: missing, and a budget spread over layers needs it")
        first, step = ranking.counts[0], ranking.counts[1] - ranking.counts[0] if len(ranking.counts) > 1 else 1
        steps = allocate(loss, (self.keep - first) * shape.num_moe_layers // step)
        return first + step * steps


def allocate(loss: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """The column of each row such that columns add up to `total` and their losses to the least possible.

    Exact for any `loss` [L, S], by dynamic programming over rows in O(L * S * total). Raises ValueError unless `total`
    is between 0 and L * (S - 1).
    """
    rows, width = loss.shape
    if not 0 <= total <= rows * (width - 1):
        raise ValueError(f"total: {total}, allowed: 0 to {rows * (width - 1)}")
    best = np.full(total + 1, np.inf)  # best[t]: least loss of the rows so far with columns adding up to t
    best[0] = 0.0
    chosen = np.zeros((rows, total + 1), np.int64)
    for row, losses in enumerate(loss):
        after = np.full(total + 1, np.inf)
        for column, value in enumerate(losses[: total + 1]):
            candidate = best[: total + 1 - column] + value
            better = candidate < after[column:]
            after[column:][better] = candidate[better]
            chosen[row, column:][better] = column
        best = after
    columns = np.zeros(rows, np.int64)
    for row in reversed(range(rows)):
        columns[row] = chosen[row, total]
        total -= columns[row]
    return columns
