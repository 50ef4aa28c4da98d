"""Predictions beside what was measured: errors point by point, of curves that the parameters were not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sglang_moe_opt.perfmodel.fit import Requests, predict_total_tok_s
from sglang_moe_opt.perfmodel.measurements import Measurements
from sglang_moe_opt.perfmodel.parameters import Fitted
from sglang_moe_opt.perfmodel.step import Setup


@dataclass(frozen=True)
class Compared:
    """One measured point and its prediction; speed-ups are None on the baseline."""

    label: str
    concurrency: int
    measured_tok_s: float
    predicted_tok_s: float
    measured_speedup: float | None
    predicted_speedup: float | None

    @property
    def tok_s_error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_tok_s / self.measured_tok_s - 1

    @property
    def speedup_error(self) -> float | None:
        if self.predicted_speedup is None or self.measured_speedup is None:
            return None
        return self.predicted_speedup / self.measured_speedup - 1

    def to_object(self) -> dict[str, Any]:
        values = {
            "measured_tok_s": self.measured_tok_s,
            "predicted_tok_s": self.predicted_tok_s,
            "measured_speedup": self.measured_speedup,
            "predicted_speedup": self.predicted_speedup,
            "tok_s_error": self.tok_s_error,
            "speedup_error": self.speedup_error,
        }
        rounded = {name: None if value is None else float(f"{value:.5g}") for name, value in values.items()}
        return {"label": self.label, "concurrency": self.concurrency, **rounded}


def compare(setup: Setup, requests: Requests, measured: Measurements, fitted: Fitted) -> list[Compared]:
    """Every point. Speed-ups are predicted at the baseline's ceilings: measured ones are paired, at one time."""
    found = []
    base = {point.concurrency: point for point in measured.baseline}
    for point in measured.points:
        predicted = predict_total_tok_s(setup, fitted.values, requests, point)
        reference = base.get(point.concurrency)
        speedup = None
        if point.speedup is not None and reference is not None:
            then = replace(point, ceilings=reference.ceilings)
            speedup = predict_total_tok_s(setup, fitted.values, requests, then) / predict_total_tok_s(
                setup, fitted.values, requests, reference
            )
        found.append(
            Compared(point.curve.label, point.concurrency, point.total_tok_s, predicted, point.speedup, speedup)
        )
    return found


def summarize(compared: Sequence[Compared]) -> dict[str, dict[str, float]]:
    """By curve, and of all but the baseline as `others`: median and largest absolute errors."""
    labels = list(dict.fromkeys(point.label for point in compared))
    groups = {label: [point for point in compared if point.label == label] for label in labels}
    if others := [point for point in compared if point.label != labels[0]]:
        groups["others"] = others
    return {label: _errors(points) for label, points in groups.items()}


def _errors(points: Sequence[Compared]) -> dict[str, float]:
    tok_s = np.abs([point.tok_s_error for point in points])
    speedups = np.abs([error for point in points if (error := point.speedup_error) is not None])
    found = {"points": len(points), "tok_s_median": np.median(tok_s), "tok_s_max": tok_s.max()}
    if len(speedups):
        found |= {"speedup_median": np.median(speedups), "speedup_max": speedups.max()}
    return {name: round(float(value), 4) for name, value in found.items()}
