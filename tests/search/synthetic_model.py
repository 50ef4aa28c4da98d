"""A model whose losses are known: a stand-in for the server in tests of the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sglang_moe_opt.search.by_weight import ByWeight
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.layer_costs import LayerCosts


class SyntheticModel:
    """Nats of pieces under schedules: `costs` says what a schedule loses, `best_rescale` where rescaling loses least.

    `by_weight` is the share of that which is lost where weights choose the experts. Every piece has its own difficulty,
    and reacts to a schedule more or less strongly.
    """

    def __init__(
        self, costs: LayerCosts, best_rescale: float | None = None, spread: float = 0.3, by_weight: float = 1.0
    ) -> None:
        self.costs, self.best_rescale, self.spread, self.by_weight = costs, best_rescale, spread, by_weight
        self.asked: list[tuple[Candidate, int]] = []

    def loss(self, one: Candidate) -> float:
        """Nats per token above the full model."""
        loss = self.costs.predict(one.layers)
        if self.best_rescale is not None and loss > 0:
            factor = {"router": 1.0, "mass": 1.4}.get(str(one.rescale), one.rescale)
            loss *= 0.6 + 4 * (float(factor) - self.best_rescale) ** 2
        return self.by_weight * loss if isinstance(one, ByWeight) else loss

    def nats(
        self, candidates: Sequence[Candidate], pieces: Sequence[np.ndarray], advance: Callable[[int], object]
    ) -> np.ndarray:
        rows = []
        for one in candidates:
            self.asked.append((one, len(pieces)))
            row = []
            for piece in pieces:
                own = np.random.default_rng(int(piece.sum()))
                level, reaction = 3 + own.normal(0, 0.5), 1 + self.spread * own.normal()
                row.append((level + reaction * self.loss(one)) * (len(piece) - 1))
                advance(len(piece))
            rows.append(row)
        return np.array(rows)


def falling_costs(seed: int, layers: int = 5, top_k: int = 8, curvature: float = 2.0) -> LayerCosts:
    """Layers of unlike sensitivity."""
    generator = np.random.default_rng(seed)
    size, rate = generator.uniform(0.02, 0.2, layers), generator.uniform(0.3, 0.7, layers)
    na = np.arange(1, top_k + 1)
    return LayerCosts(
        1, size[:, None] * (np.exp(-rate[:, None] * (na - 1)) - np.exp(-rate[:, None] * (top_k - 1))), curvature
    )


def pieces(count: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 4096, generator.integers(100, 300)).astype(np.int32) for _ in range(count)]
