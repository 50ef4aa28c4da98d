"""What a criterion is: a score for every expert, from what calibration recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.pruning.statistics import ExpertStatistics

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What criteria may look at; L MoE layers, E routed experts.

    Attributes:
        shape: of the full model.
        seed: of criteria that draw.
        statistics: from calibration; None for criteria that need none.
        statistics_folder: where they came from; the sampled inputs of the layers lie beside them.
        checkpoint: folder of the full model, for criteria that compute expert outputs.
        equal_groups: every group of the router is to keep the same number.
    """

    shape: MoEShape
    seed: int = 0
    statistics: ExpertStatistics | None = None
    statistics_folder: Path | None = None
    checkpoint: Path | None = None
    equal_groups: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """L and E."""
        return self.shape.num_moe_layers, self.shape.num_experts

    @property
    def measured(self) -> ExpertStatistics:
        """The statistics. Raises ValueError where there are none."""
        if self.statistics is None:
            raise ValueError("statistics: missing, and this criterion needs them (moe-opt calibrate makes them)")
        return self.statistics


@dataclass(frozen=True)
class Criterion:
    """A way to rank experts.

    Attributes:
        name: on the command line and in plans.
        summary: one line for people.
        score: Evidence -> float64 [L, E], higher is kept longer; ties go to the lower id.
        needs_statistics: whether `score` reads `Evidence.measured`.
        uses_seed: whether `score` draws numbers.
        needs_weights: whether `score` reads the checkpoint and the calibration's sampled inputs.
    """

    name: str
    summary: str
    score: Callable[[Evidence], Scores]
    needs_statistics: bool = True
    uses_seed: bool = False
    needs_weights: bool = False
