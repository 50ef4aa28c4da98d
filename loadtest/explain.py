"""Why the curves of a load test bend: what a decode step touched, how fast, what bounds it, the cost model beside.

A function of the analysis alone: also of runs of which nothing but the summary is left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Final

from loadtest.explanation import PROBED, Basis, ExplainedPoint, Explanation, RunBasis
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.achieved import Achieved, achieve, knee, touched
from sglang_moe_opt.perfmodel.curve import Curve, make_curve
from sglang_moe_opt.perfmodel.fit import Requests
from sglang_moe_opt.perfmodel.hardware import Hardware
from sglang_moe_opt.perfmodel.measurements import MeasuredPoint, Measurements, arm_curve, routes_evenly
from sglang_moe_opt.perfmodel.model import ServedModel
from sglang_moe_opt.perfmodel.parameters import Fitted
from sglang_moe_opt.perfmodel.step import Setup
from sglang_moe_opt.perfmodel.validation import compare
from sglang_moe_opt.perfmodel.work import Batch

if TYPE_CHECKING:
    from loadtest.analysis import Analysis, Cell, Run
    from loadtest.load import Load

STEP = "itl_p50_ms"
"""The metric that a decode step's time is taken from: the median time between tokens."""
TOTAL = "total_tok_s"
COUNTING_ERROR: Final = 0.02
"""Relative: how far the mean that the server's count leaves may be from the arm's own, as some requests are cut off."""
UNKNOWN_MEMORY: Final = 1e15
"""Bytes, where the machine does not say: no request waits for room."""


@dataclass(frozen=True)
class _Run:
    """What the points of a run have in common. `setup.hardware` means nothing where `basis` has none."""

    requests: Requests
    setup: Setup
    basis: RunBasis

    def at(self, ceilings: tuple[float, float] | None) -> Setup:
        if ceilings is None or not self.basis.is_probed:
            return self.setup
        return replace(self.setup, hardware=self.setup.hardware.with_ceilings(*ceilings))


def explain(analysis: Analysis, basis: Basis) -> Explanation:
    """Every point whose model, experts per token and step time are known. Raises FieldError where the parameters are of
    another kind of hardware."""
    points: list[ExplainedPoint] = []
    knees: dict[str, float | None] = {}
    bases: dict[str, RunBasis] = {}
    notes: list[str] = []
    for run in analysis.runs:
        names = analysis.names_of(run)
        cells = [cell for cell in analysis.cells if cell.arm in names.values()]
        prefix = f"{run.name}: " if len(analysis.runs) > 1 else ""
        try:
            model = _model(run)
        except ValueError as problem:
            notes.append(f"{prefix}{problem}: bytes, operations and predictions are left out.")
            continue
        known = _known(run, cells, model, basis)
        bases[run.name] = known.basis
        found, missing = _points(run, names, cells, known)
        points += found
        notes += [f"{prefix}{text}" for text in missing]
        if known.basis.hardware is None:
            notes.append(
                f"{prefix}what the machine can do is not known: neither shares nor predictions. For a CPU run moe-opt "
                "predict --calibrate-this-machine on it, then moe-opt report DIR --hardware this; for GPUs moe-opt "
                "report DIR --hardware h200 --tp 8."
            )
        else:
            knees |= {arm: _knee([p for p in found if p.arm == arm]) for arm in dict.fromkeys(p.arm for p in found)}
    return Explanation(tuple(points), knees, bases, tuple(notes))


def _model(run: Run) -> ServedModel:
    """Raises ValueError."""
    config = run.manifest.model_config_json
    if config is None:
        raise ValueError("the model's config could not be read")
    try:
        return ServedModel.from_config(config)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the model's config has no usable {error}") from None


def _known(run: Run, cells: Sequence[Cell], model: ServedModel, basis: Basis) -> _Run:
    """Hardware, parameters and lengths of requests."""
    probes = [found for cell in cells if (found := _ceilings(cell))]
    hardware = basis.hardware
    if hardware is None:
        memory = run.manifest.machine.get("memory_gb")
        bandwidth, flops = (median(values) for values in zip(*probes, strict=True)) if probes else (1.0, 1.0)
        hardware = Hardware(PROBED, "cpu", bandwidth, flops, 1e9 * float(memory) if memory else UNKNOWN_MEMORY)
    fitted = basis.parameters or Fitted.default(hardware.kind)
    if fitted.kind != hardware.kind:
        raise FieldError("--parameters", fitted.kind, f"parameters of a {hardware.kind}, as {hardware.name} is")
    if basis.parameters is None and routes_evenly(run.manifest.model):
        fitted = replace(fitted, values=replace(fitted.values, routing_skew=0.0))
    is_known = basis.hardware is not None or bool(probes)
    run_basis = RunBasis(hardware if is_known else None, basis.split, fitted, basis.hardware is None and bool(probes))
    return _Run(_requests(run, cells), Setup(model, hardware, basis.split), run_basis)


def _requests(run: Run, cells: Sequence[Cell]) -> Requests:
    """As asked for, where prompts are random tokens; else what went in and out for each request."""
    if asked := re.fullmatch(r"random:(\d+)", run.manifest.prompts):
        return Requests(int(asked[1]), run.manifest.output_len)
    lengths = []
    for tag in ("input_tok_s", "output_tok_s"):
        known = [cell.values for cell in cells if {tag, "requests_s"} <= set(cell.values)]
        both = [(values[tag].median, values["requests_s"].median) for values in known]
        ratios = [tokens / requests for tokens, requests in both if requests > 0]
        lengths.append(max(1, round(median(ratios))) if ratios else run.manifest.output_len)
    return Requests(*lengths)


def _points(
    run: Run, names: Mapping[str, str], cells: Sequence[Cell], known: _Run
) -> tuple[list[ExplainedPoint], list[str]]:
    """Those of one run with the first arm's beside each, and what was left out."""
    found: dict[tuple[str, Load], ExplainedPoint] = {}
    measured: list[MeasuredPoint] = []
    missing = []
    for label, name in names.items():
        mine = sorted((c for c in cells if c.arm == name and not c.load.is_open), key=lambda cell: cell.load)
        curve = _curve(run, label, mine, known)
        if curve is None:
            missing.append(f"{label}: how many experts a token has is not known; left out.")
            continue
        for cell in mine:
            if STEP in cell.values and TOTAL in cell.values and cell.values[STEP].median > 0:
                found[name, cell.load] = _point(cell, curve, known)
                measured.append(_measured(cell, curve))
    if any(cell.load.is_open for cell in cells):
        missing.append("open loops are left out: the batches of their steps are not known.")
    first = next(iter(names))
    if known.basis.hardware is not None and measured:
        compared = {
            (names[one.label], one.concurrency): one
            for one in compare(known.setup, known.requests, Measurements(tuple(measured)), known.basis.fitted)
        }
        has_first = measured[0].curve.label == first
        for key, point in found.items():
            one = compared[key[0], int(key[1].value)]
            speedup = one.predicted_speedup if has_first else None
            found[key] = replace(point, predicted_tok_s=one.predicted_tok_s, predicted_speedup=speedup)
    return [_beside(found, key, names[first]) for key in found], missing


def _curve(run: Run, label: str, cells: Sequence[Cell], known: _Run) -> Curve | None:
    """By the arm's hint; where that keeps no fixed number, by the share of slots that the server computed."""
    arm, shape = next(one for one in run.manifest.arms if one.label == label), known.setup.model.shape
    try:
        curve = arm_curve(arm.model_dump(mode="json"), shape)
        shares = [cell.values["slots_kept"].median for cell in cells if "slots_kept" in cell.values]
        if shares and not arm.is_baseline_server:
            share = min(1.0, median(shares))
            if curve is None:
                curve = make_curve(shape, label, na=share * shape.top_k)
                curve = replace(curve, kept=tuple(arm.plan.kept)) if arm.plan else curve
            curve = with_counted_decode(curve, share * shape.top_k, known.requests)
    except ValueError:
        return None
    return curve


def with_counted_decode(curve: Curve, mean_na: float, requests: Requests) -> Curve:
    """With the experts of generated tokens that the server's count leaves, where the curve has another mean.

    A profile is known by the mean of its prompts alone; its generated tokens may keep fewer. The first of them comes
    from the prompt's pass.
    """
    prompt, generated = requests.input_tokens, requests.output_tokens - 1
    if generated <= 0:
        return curve
    decode = (mean_na * (prompt + generated) - fmean(curve.na_prefill) * prompt) / generated
    if abs(decode - fmean(curve.na_decode)) < COUNTING_ERROR * max(decode, 1.0):
        return curve
    return replace(curve, na_decode=(max(0.0, decode),) * len(curve.na_decode))


def _ceilings(cell: Cell) -> tuple[float, float] | None:
    """Bytes/s and FLOP/s of the machine as it was probed beside the rounds of a point."""
    if not {"gb_s", "bandwidth_share", "gflop_s", "compute_share"} <= set(cell.values):
        return None
    gigabytes, read, gigaflops, computed = (
        cell.values[tag].median for tag in ("gb_s", "bandwidth_share", "gflop_s", "compute_share")
    )
    return (1e9 * gigabytes / read, 1e9 * gigaflops / computed) if read > 0 and computed > 0 else None


def _point(cell: Cell, curve: Curve, known: _Run) -> ExplainedPoint:
    values = {tag: spread.median for tag, spread in cell.values.items()}
    users = float(cell.load.value)
    batch = min(users, max(1.0, values.get("running", users)))
    requests, distinct = known.requests, values.get("distinct_experts")
    step = Batch(batch, batch, requests.input_tokens + requests.output_tokens / 2, False, distinct)
    setup, parameters, step_s = known.at(_ceilings(cell)), known.basis.fitted.values, values[STEP] / 1000
    if known.basis.hardware is None:
        achieved = Achieved(touched(setup.model, curve, setup.split, step, parameters.routing_skew), step_s)
    else:
        achieved = achieve(setup, curve, parameters, step, step_s)
    return ExplainedPoint(
        arm=cell.arm,
        load=cell.load,
        batch=batch,
        kept=curve.mean_kept,
        is_counted=distinct is not None,
        achieved=achieved,
        measured_tok_s=values[TOTAL],
        measured_speedup=cell.speedup[TOTAL].median if TOTAL in cell.speedup else None,
    )


def _measured(cell: Cell, curve: Curve) -> MeasuredPoint:
    speedup = cell.speedup[TOTAL].median if TOTAL in cell.speedup else None
    total = cell.values[TOTAL].median
    return MeasuredPoint(curve, int(cell.load.value), total, speedup=speedup, ceilings=_ceilings(cell))


def _beside(found: Mapping[tuple[str, Load], ExplainedPoint], key: tuple[str, Load], first: str) -> ExplainedPoint:
    """With what the step saves over the first arm's, and what it grew by since the load before."""
    arm, load = key
    point, base = found[key], found.get((first, load))
    work = point.achieved.work
    if base is not None and arm != first:
        other = base.achieved.work
        point = replace(point, bytes_ratio=work.total_bytes / other.total_bytes, flops_ratio=work.flops / other.flops)
    smaller = [one for name, one in found if name == arm and one < load]
    if smaller:
        before = found[arm, max(smaller)].achieved
        grown = (
            point.achieved.step_s / before.step_s,
            work.total_bytes / before.work.total_bytes,
            work.flops / before.work.flops,
        )
        point = replace(point, before=max(smaller), grown=grown)
    return point


def _knee(points: Sequence[ExplainedPoint]) -> float | None:
    ordered = [(point.batch, point.achieved.expected) for point in sorted(points, key=lambda one: one.load)]
    known = [(batch, expected) for batch, expected in ordered if expected is not None]
    return knee([batch for batch, _ in known], [expected for _, expected in known])
