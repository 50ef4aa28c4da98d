"""Is the model fit to judge skipping and pruning? Losses with hidden experts: at random, and those least used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from eval.reference_models.model import ReferenceModel

CALIBRATION_WINDOWS = 256
"""Windows on which experts are counted: training text of the sources that the loss is measured on."""
RANDOM_SEEDS = 5
BOOTSTRAP_SAMPLES = 2000
LEAST_LOSS_OF_NA_1 = 3.0
"""Percent of held-out loss that one routed expert per token must cost, or quality claims about skipping say nothing."""


def relative_interval(nats: np.ndarray, base: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Relative change of summed loss in percent, with a 95 % paired bootstrap interval over windows."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(base), size=(BOOTSTRAP_SAMPLES, len(base)))
    changes = nats[draws].sum(axis=1) / base[draws].sum(axis=1) - 1
    low, high = np.percentile(changes, [2.5, 97.5])
    return 100 * (nats.sum() / base.sum() - 1), 100 * float(low), 100 * float(high)


@torch.no_grad()
def soft_counts(model: ReferenceModel, inputs: torch.Tensor, batch: int = 16) -> list[torch.Tensor]:
    """Sum of the router weights given to each expert (SEER-MoE, arXiv:2404.05089) over (windows, length) tokens.

    Returns one (experts,) tensor per expert layer.
    """
    totals = [torch.zeros(model.spec.n_routed_experts) for _ in model.routers]
    for x in inputs.split(batch):
        for total, routing in zip(totals, model(x)[1], strict=True):
            total.scatter_add_(0, routing.indices.flatten(), routing.weights.flatten())
    return totals


def best_half(scores: torch.Tensor, n_group: int) -> torch.Tensor:
    """Ids of the half of the experts with the best (experts,) scores, the same number in each routing group."""
    grouped = scores.view(n_group, -1)
    size = grouped.shape[1]
    return (grouped.topk(size // 2, dim=1).indices + torch.arange(n_group).unsqueeze(1) * size).flatten()


@contextmanager
def only_experts(model: ReferenceModel, kept: list[torch.Tensor]) -> Iterator[None]:
    """Hide all but the ``kept`` experts of each layer, given as one tensor of expert ids per expert layer."""
    for router, ids in zip(model.routers, kept, strict=True):
        router.kept = torch.zeros(model.spec.n_routed_experts, dtype=torch.bool).index_fill_(0, ids, True)
    try:
        yield
    finally:
        for router in model.routers:
            router.kept = None


def pruning_losses(
    model: ReferenceModel, calibration: torch.Tensor, base: np.ndarray, losses: Callable[[], np.ndarray]
) -> list[dict[str, Any]]:
    """Change of the held-out loss with half of the experts hidden: by soft count, and at random with several seeds.

    ``calibration`` (windows, length) are training tokens; ``base`` the full model's nats per held-out window, which
    ``losses`` measures again for the model as it stands.
    """
    spec = model.spec
    choices = {"soft count": [best_half(counts, spec.n_group) for counts in soft_counts(model, calibration)]}
    for seed in range(RANDOM_SEEDS):
        generator = torch.Generator().manual_seed(seed)
        choices[f"random, seed {seed}"] = [
            best_half(torch.rand(spec.n_routed_experts, generator=generator), spec.n_group) for _ in spec.moe_layers
        ]
    rows = []
    for method, kept in choices.items():
        with only_experts(model, kept):
            change, low, high = relative_interval(losses(), base)
        rows.append(
            {
                "method": method,
                "experts": spec.n_routed_experts // 2,
                "change_percent": round(change, 3),
                "change_percent_95": [round(low, 3), round(high, 3)],
            }
        )
    return rows


def verdict(reduced: list[dict[str, Any]], pruned: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether one expert per token visibly hurts, and pruning at random hurts more than by soft count."""
    na_1 = reduced[-1]["change_percent"]
    soft = next(row["change_percent"] for row in pruned if row["method"] == "soft count")
    random = [row["change_percent"] for row in pruned if row["method"].startswith("random")]
    return {
        "na_1_hurts": bool(na_1 >= LEAST_LOSS_OF_NA_1),
        "random_pruning_hurts_more_than_soft_count": bool(min(random) > soft),
        "change_percent": {"na 1": na_1, "soft count": soft, "random, mean": round(float(np.mean(random)), 3)},
    }
