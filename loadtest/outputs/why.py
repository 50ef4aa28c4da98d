"""Why the curves bend, in sentences and as table cells, for every format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from loadtest.analysis import Analysis
from loadtest.explanation import ExplainedPoint, RunBasis
from loadtest.load import Load
from loadtest.outputs.words import at
from sglang_moe_opt.perfmodel.achieved import UNEXPLAINED

Column = tuple[str, str, Callable[[ExplainedPoint], str]]

TITLE = "Why the curves bend"
ABOUT = (
    "Weights and cache that a decode step must read and the operations that it must do, by the model's sizes, the "
    "batch and its distinct experts, over the median time between tokens. Bound by: what most of the step should "
    "take by the cost model for just this batch, at the machine's ceilings; unexplained where the model misses more "
    "than that."
)
COLUMNS: tuple[Column, ...] = (
    ("step", "ms", lambda p: f"{1000 * p.achieved.step_s:,.1f}"),
    ("experts", "a layer", lambda p: f"{p.achieved.work.distinct_experts:.1f}{'' if p.is_counted else '*'}"),
    ("read", "GB", lambda p: f"{p.achieved.work.total_bytes / 1e9:.3g}"),
    ("computed", "GFLOP", lambda p: f"{p.achieved.work.flops / 1e9:.3g}"),
    ("GB/s", "", lambda p: f"{p.achieved.bytes_s / 1e9:,.1f}"),
    ("of bandwidth", "", lambda p: percent(p.achieved.bandwidth_share)),
    ("GFLOP/s", "", lambda p: f"{p.achieved.flop_s / 1e9:,.0f}"),
    ("of peak", "", lambda p: percent(p.achieved.compute_share)),
    ("bound by", "", lambda p: p.achieved.bound or ""),
    ("total tok/s", "", lambda p: f"{p.measured_tok_s:,.0f}"),
    ("predicted", "", lambda p: "" if p.predicted_tok_s is None else f"{p.predicted_tok_s:,.0f}"),
    ("speed-up", "", lambda p: ratio(p.measured_speedup)),
    ("predicted", "", lambda p: "" if p.measured_speedup is None else ratio(p.predicted_speedup)),
)
"""Head, unit, and text of a point; a star marks expected experts that the server did not count."""


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def columns(analysis: Analysis) -> list[Column]:
    """Those that say something of any point."""
    points = analysis.explanation.points
    return [column for column in COLUMNS if any(column[2](point) for point in points)]


def lines(analysis: Analysis) -> list[str]:
    """Ceilings, where each arm's knee is, what its speed-ups follow from, how far the predictions are off; what is
    missing."""
    found = analysis.explanation
    told = [_ceilings(name, basis, analysis) for name, basis in found.bases.items() if basis.hardware is not None]
    for arm in dict.fromkeys(point.arm for point in found.points):
        mine = [point for point in found.points if point.arm == arm]
        told += [*_bound(arm, mine, found.knees.get(arm)), *_saved(analysis, arm, mine)]
    return [*told, *_errors(found.points), *found.notes]


def of_point(point: ExplainedPoint) -> str:
    """What bounds a step and what it grew by, in a sentence or two."""
    work, achieved = point.achieved.work, point.achieved
    experts = f"{work.distinct_experts:.1f} of {point.kept:.3g} experts a layer"
    read, computed = percent(achieved.bandwidth_share), percent(achieved.compute_share)
    text = {
        "memory": f"reads {experts}, at {read} of the bandwidth",
        "compute": f"computes at {computed} of the peak; {experts} are read for {point.batch:.0f} sequences",
        "communication": f"{_share(point, 'communication')} of the step is communication between devices",
        "overhead": f"{_share(point, 'overhead')} of the step is launching and bookkeeping, whatever is computed",
        UNEXPLAINED: f"{_share(point, UNEXPLAINED)} of the step is not in the cost model: "
        f"{read} of the bandwidth, {computed} of the peak",
        None: f"reads {experts}",
    }[achieved.bound]
    if point.before is None or point.grown is None:
        return text
    step, read_more, computed_more = point.grown
    return (
        f"{text}; since {point.before.value:g} the step takes {step:.2f} times as long, "
        f"for {read_more:.2f} times the bytes and {computed_more:.2f} times the operations"
    )


def _share(point: ExplainedPoint, name: str) -> str:
    return percent((point.achieved.shares or {}).get(name))


def _ceilings(name: str, basis: RunBasis, analysis: Analysis) -> str:
    """What the machine can do, and whose parameters say how much of it an engine reaches."""
    run, hardware = f"{name}: " if len(analysis.runs) > 1 else "", basis.hardware
    assert hardware is not None
    devices = f", of each of {basis.split.tp} devices" if basis.split.tp > 1 else ""
    if basis.is_probed:
        known = [one.achieved for one in analysis.explanation.points if one.achieved.bandwidth_bytes_s]
        read = _range([one.bandwidth_bytes_s for one in known], 1e9, "GB/s")
        computed = _range([one.flops_s for one in known], 1e9, "GFLOP/s")
        where = "probed beside each point"
    else:
        read, computed = f"{hardware.bandwidth_bytes_s / 1e9:,.0f} GB/s", f"{hardware.flops_s / 1e9:,.0f} GFLOP/s bf16"
        where = hardware.name
    fitted = basis.fitted.provenance
    source = fitted.get("file") or fitted.get("folder") or "nothing"
    curve = fitted.get("curves") or fitted.get("column") or fitted.get("arm")
    source += f", {curve}" if curve else ""
    reached = [percent(getattr(basis.fitted.values, f"{name}_efficiency")) for name in ("bandwidth", "flops")]
    return (
        f"{run}Ceilings: {read} and {computed} ({where}{devices}). The cost model expects an engine to reach "
        f"{' and '.join(reached)} of them (parameters fitted to {source})."
    )


def _range(values: Sequence[float | None], unit: float, name: str) -> str:
    known = [value / unit for value in values if value]
    return f"{min(known):,.0f} to {max(known):,.0f} {name}"


def _bound(arm: str, points: Sequence[ExplainedPoint], knee: float | None) -> list[str]:
    """Which loads are bound by what, and from where on computing takes longer than reading."""
    bounds = [(point.load, point.achieved.bound) for point in points]
    every = [load for load, _ in bounds]
    parts = [
        f"by {bound} {at(*(load for load, one in bounds if one == bound), among=every)}"
        if bound != UNEXPLAINED
        else f"by what the cost model does not know {at(*(load for load, one in bounds if one == bound), among=every)}"
        for bound in dict.fromkeys(one for _, one in bounds if one is not None)
    ]
    if not parts:
        return []
    if knee is not None:
        where = f"Its knee is at {knee:.0f}: from there on computing takes longer than reading."
    else:
        last = points[-1].achieved.expected
        longer = last is not None and last.compute_s > last.memory_s
        what = "computing takes longer from the first load on" if longer else "reading takes longer at the last load"
        where = f"It has no knee within these loads: {what}."
    return [f"{arm} is bound {', '.join(parts)}. {where}"]


def _saved(analysis: Analysis, arm: str, points: Sequence[ExplainedPoint]) -> list[str]:
    """At the largest speed-up and at the largest load: its bytes and operations beside the first arm's."""
    known = [point for point in points if point.measured_speedup and point.bytes_ratio and point.flops_ratio]
    if not known:
        return []
    best = max(known, key=lambda point: point.measured_speedup or 0.0)
    shown = [best] if best is known[-1] else [best, known[-1]]
    base = analysis.baseline_of(arm)
    return [f"{arm} beside {base}: {'; '.join(_ratios(point) for point in shown)}."]


def _ratios(point: ExplainedPoint) -> str:
    predicted = f", predicted {point.predicted_speedup:.2f}" if point.predicted_speedup else ""
    return (
        f"{_at(point.load)} a step reads {point.bytes_ratio:.2f} and computes {point.flops_ratio:.2f} times as much, "
        f"and it is {point.measured_speedup:.2f} times as fast{predicted}"
    )


def _at(load: Load) -> str:
    return f"at {load.value:g}"


def _errors(points: Sequence[ExplainedPoint]) -> list[str]:
    parts = []
    for what, errors in (
        ("total tok/s are", [abs(one.tok_s_error) for one in points if one.tok_s_error is not None]),
        ("speed-ups", [abs(one.speedup_error) for one in points if one.speedup_error is not None]),
    ):
        if errors:
            off = f"{100 * median(errors):.1f} % off in the median, {100 * max(errors):.0f} % at most"
            parts.append(f"{what} {off} ({len(errors)} points)")
    return [f"Predicted {', '.join(parts)}."] if parts else []
