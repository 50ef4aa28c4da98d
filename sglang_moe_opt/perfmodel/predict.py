"""Tables of predictions: throughput and speed-up by concurrency, with intervals, and questions asked the other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from sglang_moe_opt.perfmodel.curve import Curve
from sglang_moe_opt.perfmodel.parameters import Fitted, Parameters, to_free
from sglang_moe_opt.perfmodel.serving import Point, Workload, serve
from sglang_moe_opt.perfmodel.step import Setup

Count = Literal["total", "output"]
NUDGE: Final = 0.05
"""Step of the difference quotients, on the parameters' scales without bounds."""


@dataclass(frozen=True)
class Prediction:
    """A curve at one concurrency; speed-up over the first curve, with a 95 % interval from the parameters' errors."""

    curve: Curve
    load: Workload
    point: Point
    tok_s: float
    speedup: float
    speedup_low: float
    speedup_high: float

    def to_object(self) -> dict[str, Any]:
        """JSON-ready; times in seconds."""
        point = self.point
        return {
            "concurrency": self.load.concurrency,
            "label": self.curve.label,
            "na": _short(self.curve.mean_na),
            "experts": _short(self.curve.mean_kept),
            "tok_s": _short(self.tok_s),
            "speedup": _short(self.speedup),
            "speedup_95": [_short(self.speedup_low), _short(self.speedup_high)],
            "regime": point.regime,
            "shares": {name: round(share, 4) for name, share in point.time.shares.items()},
            "total_tok_s": _short(point.total_tok_s),
            "output_tok_s": _short(point.output_tok_s),
            "ttft_s": _short(point.ttft_s),
            "tpot_s": _short(point.tpot_s),
            "decode_step_s": _short(point.decode_step_s),
            "prefill_share": _short(point.prefill_share),
            "distinct_experts": _short(point.distinct_experts),
            "running": _short(point.running),
            "fits": point.fits,
        }


@dataclass(frozen=True)
class Predictor:
    """Answers for one setup. `count`: whether tok/s are all tokens, as the paper counts, or generated ones."""

    setup: Setup
    fitted: Fitted
    input_tokens: int = 1024
    output_tokens: int = 1024
    count: Count = "total"

    def table(self, curves: Sequence[Curve], concurrencies: Sequence[int]) -> list[Prediction]:
        """Every curve at every concurrency; the first curve is the baseline."""
        found = []
        for curve in curves:
            for concurrency in concurrencies:
                load = Workload(concurrency, self.input_tokens, self.output_tokens)
                point = serve(self.setup, curve, self.fitted.values, load)
                speedup = self._speedup(curve, curves[0], load, self.fitted.values)
                half = 1.96 * self._log_sd(curve, curves[0], load)
                low, high = speedup * np.exp(-half), speedup * np.exp(half)
                found.append(Prediction(curve, load, point, self._tok_s(point), speedup, float(low), float(high)))
        return found

    def speedup(self, curve: Curve, baseline: Curve, concurrency: int) -> float:
        """Tokens per second of one curve over another's."""
        load = Workload(concurrency, self.input_tokens, self.output_tokens)
        return self._speedup(curve, baseline, load, self.fitted.values)

    def least_reduction(
        self, baseline: Curve, concurrency: int, wanted: float, variants: Sequence[Curve]
    ) -> tuple[Curve | None, float]:
        """The first of `variants` that is `wanted` times as fast as the baseline, and the most that any gives."""
        speedups = [self.speedup(curve, baseline, concurrency) for curve in variants]
        reached = next((c for c, s in zip(variants, speedups, strict=True) if s >= wanted), None)
        return reached, max(speedups, default=1.0)

    def pays(self, curve: Curve, baseline: Curve, wanted: float, last: int) -> list[tuple[int, int]]:
        """Runs of concurrencies from 1 to `last` at which the curve is at least `wanted` times as fast."""
        levels = sorted({1, last, *(round(float(c)) for c in np.geomspace(1, last, 64))})
        good = {level: self.speedup(curve, baseline, level) >= wanted for level in levels}
        runs: list[tuple[int, int]] = []
        for before, level in zip([None, *levels], levels, strict=False):
            if good[level] and (before is None or not good[before]):
                start = (
                    level
                    if before is None
                    else self._edge(before, level, lambda c: self._good(curve, baseline, c, wanted))
                )
                runs.append((start, level))
            if good[level] and runs:
                runs[-1] = runs[-1][0], level
            elif before is not None and good[before]:
                end = self._edge(before, level, lambda c: not self._good(curve, baseline, c, wanted)) - 1
                runs[-1] = runs[-1][0], end
        return runs

    def _good(self, curve: Curve, baseline: Curve, concurrency: int, wanted: float) -> bool:
        return self.speedup(curve, baseline, concurrency) >= wanted

    @staticmethod
    def _edge(before: int, after: int, reached: Callable[[int], bool]) -> int:
        """The first concurrency above `before` at which something holds that holds at `after`."""
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (before, middle) if reached(middle) else (middle, after)
        return after

    def _tok_s(self, point: Point) -> float:
        return point.total_tok_s if self.count == "total" else point.output_tok_s

    def _speedup(self, curve: Curve, baseline: Curve, load: Workload, parameters: Parameters) -> float:
        if curve == baseline:
            return 1.0
        mine, other = (serve(self.setup, one, parameters, load) for one in (curve, baseline))
        return mine.output_tok_s / other.output_tok_s

    def _log_sd(self, curve: Curve, baseline: Curve, load: Workload) -> float:
        """Standard deviation of the speed-up's logarithm: the parameters' covariance through its gradient."""
        fitted = self.fitted
        if curve == baseline or not fitted.names:
            return 0.0
        gradient = []
        for name in fitted.names:
            center = to_free(name, getattr(fitted.values, name))
            ends = [fitted.at({name: center + sign * NUDGE}) for sign in (1, -1)]
            up, down = (self._speedup(curve, baseline, load, values) for values in ends)
            gradient.append(np.log(up / down) / (2 * NUDGE))
        slope = np.array(gradient)
        return float(np.sqrt(max(0.0, slope @ fitted.covariance @ slope)))


def fewer_experts_per_token(setup: Setup, baseline: Curve) -> list[Curve]:
    """The baseline with one routed expert less after the other, in every layer alike."""
    shape = setup.model.shape
    first = round(max(baseline.na_decode))
    least = 0 if shape.num_shared_experts else 1
    return [
        replace(
            baseline,
            label=f"na {na}",
            na_prefill=_capped(baseline.na_prefill, na),
            na_decode=_capped(baseline.na_decode, na),
        )
        for na in range(first, least - 1, -1)
    ]


def fewer_experts(setup: Setup, baseline: Curve) -> list[Curve]:
    """The baseline with one kept expert less after the other, down to the model's top-k; the most popular stay."""
    counts = range(max(baseline.kept), setup.model.shape.top_k - 1, -1)
    return [_pruned(baseline, count) for count in counts]


def _pruned(curve: Curve, most: int) -> Curve:
    kept = tuple(min(count, most) for count in curve.kept)
    popularity = curve.popularity
    if popularity is not None:
        popularity = tuple(tuple(sorted(layer, reverse=True)[:most]) for layer in popularity)
    return replace(curve, label=f"{most} experts", kept=kept, popularity=popularity)


def _capped(na_by_layer: tuple[float, ...], most: float) -> tuple[float, ...]:
    return tuple(min(na, float(most)) for na in na_by_layer)


def _short(value: float) -> float | int:
    """Six significant digits; whole numbers as such."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short
