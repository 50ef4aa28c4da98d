"""What a schedule gains in a decode step, by batch size: measured or predicted, and for how many of its tokens."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.roofline import Machine, decode_step, expected_distinct_experts

Curve = tuple[tuple[int, float], ...]
"""(tokens of a decode step, speed-up when all of them run the schedule), ascending in tokens."""

PREDICTED_AT = tuple(2**power for power in range(11))
"""Batch sizes for which a roofline is worked out, 1 to 1024."""


def interpolate(curve: Curve, tokens: int) -> float:
    """The speed-up at a batch size: linear in the logarithm of it, and beyond the ends what it is there."""
    place = bisect.bisect_left(curve, (tokens,))
    if place == 0 or place == len(curve):
        return curve[min(place, len(curve) - 1)][1]
    (left, low), (right, high) = curve[place - 1 : place + 1]
    return low + (high - low) * math.log(tokens / left) / math.log(right / left)


def predict(shape: MoEShape, table: LayerTable, machine: Machine, context: float) -> Curve:
    """The roofline's speed-up over the full model, with even and independent routing.

    Args:
        table: the schedule, without magnitude rules (their na is an upper bound and would predict no gain).
        context: cached tokens of a sequence, mean.
    """

    def seconds(layers: Sequence[int], tokens: int) -> float:
        distinct = fmean(expected_distinct_experts(shape.num_experts, na, tokens) for na in layers)
        work = decode_step(shape, tokens=tokens, na=fmean(layers), distinct_experts=distinct, context=context)
        return machine.seconds(work)

    full, kept = [shape.top_k] * len(table), table.na.tolist()
    return tuple((tokens, seconds(full, tokens) / seconds(kept, tokens)) for tokens in PREDICTED_AT)


@dataclass(frozen=True)
class SpeedModel:
    """How fast a decode step is under each level, relative to the first, where a part of its tokens runs that level.

    curves: of each level over the full model. na: experts per token of each level, mean over the layers.
    top_k, num_experts: of the model. Tokens that did not opt in are taken to run the full model.
    """

    curves: tuple[Curve, ...]
    na: tuple[float, ...]
    top_k: int
    num_experts: int

    def speeds(self, tokens: int, opted: int) -> list[float]:
        """Of each level, >= 1 where it is faster than the first.

        A step saves time by reading fewer experts and by computing fewer slots. Slots are saved by every token that
        opted in. An expert is only saved if the others do not touch it either, so that of what fewer distinct experts
        can have brought (at most their share of all) only a part is left: the distinct experts that this batch saves,
        over those that it would save if all of it had opted in.
        """
        curves = [interpolate(curve, tokens) for curve in self.curves]
        return [
            1 / (1 - self._saved(1 - curves[0] / curve, level, tokens, opted)) for level, curve in enumerate(curves)
        ]

    def best(self, tokens: int, opted: int, min_gain: float) -> int:
        """The gentlest level than which none is `min_gain` times as fast."""
        speeds = self.speeds(tokens, opted)
        fastest = max(speeds)
        return next(level for level, speed in enumerate(speeds) if speed == fastest or fastest < speed * min_gain)

    def _saved(self, saved: float, level: int, tokens: int, opted: int) -> float:
        """Of `saved`, a share of the first level's time that is saved when all tokens opt in, what `opted` save."""
        first, cheaper, full = (1 - na / self.num_experts for na in (self.na[0], self.na[level], self.top_k))
        untouched, all_saved = first**tokens, cheaper**tokens - first**tokens
        if all_saved <= 0 or saved <= 0:
            return saved * opted / tokens
        by_reading = min(saved, all_saved / (1 - untouched)) if untouched < 1 else saved
        still_saved = full ** (tokens - opted) * (cheaper**opted - first**opted) / all_saved
        return by_reading * still_saved + (saved - by_reading) * opted / tokens
