"""The explanation of a load test as a JSON-ready object; `outputs/json.py` lists its keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from loadtest.analysis import Analysis
from loadtest.explanation import ExplainedPoint, RunBasis
from loadtest.outputs import why
from sglang_moe_opt.perfmodel.step import REGIMES

DIGITS = 6
"""Significant digits of every number."""
COLUMNS = {
    "shared_bytes": "bytes",
    "expert_bytes": "bytes",
    "cache_bytes": "bytes",
    "flops": "FLOP",
    "predicted_tok_s": "tok/s",
    "predicted_speedup": "times",
}
"""What goes into tables of one number a line, with its unit."""


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def explanation(analysis: Analysis) -> dict[str, Any]:
    """All of it."""
    found = analysis.explanation
    return {
        "knees": {arm: _maybe(knee) for arm, knee in found.knees.items()},
        "runs": {name: _basis(basis) for name, basis in found.bases.items()},
        "points": [point_object(point) for point in found.points],
        "lines": why.lines(analysis),
        "notes": list(found.notes),
    }


def point_object(point: ExplainedPoint) -> dict[str, Any]:
    """One point; null where something is not known."""
    achieved, work = point.achieved, point.achieved.work
    expected = achieved.expected
    ceilings = {"bandwidth_bytes_s": achieved.bandwidth_bytes_s, "flops_s": achieved.flops_s}
    grown = dict(zip(("step", "bytes", "flops"), point.grown, strict=True)) if point.grown and point.before else None
    return {
        "arm": point.arm,
        "load": point.load.label,
        "batch": rounded(point.batch),
        "why": why.of_point(point),
        "bound_by": achieved.bound,
        "step_s": rounded(achieved.step_s),
        "distinct_experts": rounded(work.distinct_experts),
        "experts_counted": point.is_counted,
        "shared_bytes": rounded(work.shared_bytes),
        "expert_bytes": rounded(work.expert_bytes),
        "cache_bytes": rounded(work.cache_bytes),
        "flops": rounded(work.flops),
        "bytes_s": rounded(achieved.bytes_s),
        "flops_s": rounded(achieved.flop_s),
        "bandwidth_share": _maybe(achieved.bandwidth_share),
        "compute_share": _maybe(achieved.compute_share),
        "ceilings": {name: _maybe(value) for name, value in ceilings.items()},
        "expected_s": expected and {name: rounded(getattr(expected, f"{name}_s")) for name in REGIMES},
        "shares": achieved.shares and {name: round(share, 4) for name, share in achieved.shares.items()},
        "measured_tok_s": rounded(point.measured_tok_s),
        "predicted_tok_s": _maybe(point.predicted_tok_s),
        "measured_speedup": _maybe(point.measured_speedup),
        "predicted_speedup": _maybe(point.predicted_speedup),
        "bytes_ratio": _maybe(point.bytes_ratio),
        "flops_ratio": _maybe(point.flops_ratio),
        "grown": grown and {"since": point.before and point.before.label, **{n: rounded(v) for n, v in grown.items()}},
    }


def _basis(basis: RunBasis) -> dict[str, Any]:
    hardware = basis.hardware
    return {
        "hardware": hardware and hardware.name,
        "ceilings_probed": basis.is_probed,
        "bandwidth_bytes_s": hardware and rounded(hardware.bandwidth_bytes_s),
        "flops_s": hardware and rounded(hardware.flops_s),
        "tp": basis.split.tp,
        "ep": basis.split.ep,
        "parameters": asdict(basis.fitted.values),
        "fitted_to": basis.fitted.provenance,
    }


def _maybe(value: float | None) -> float | None:
    return None if value is None else rounded(value)
