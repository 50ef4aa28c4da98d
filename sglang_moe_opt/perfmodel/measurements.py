"""Throughput that was measured: a CSV table by concurrency, or the summary.json of a load test."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import read_json
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.curve import Consolidated, Curve, make_curve
from sglang_moe_opt.schedule import Limits, PhasedSchedule, SkipSchedule

CONCURRENCY: Final = "concurrency"
_COLUMN: Final = re.compile(r"(?:na(\d+(?:\.\d+)?))?[_/ ]?(?:experts(\d+))?")


@dataclass(frozen=True)
class MeasuredPoint:
    """One curve at one concurrency.

    Attributes:
        total_tok_s: prompt and generated tokens per second.
        log_sd: standard deviation of its logarithm over rounds, 0 where it was measured once.
        speedup: over the baseline at the same concurrency, paired by round where there are rounds; None for itself.
        ceilings: bytes/s and FLOP/s of the machine as it was probed beside the point; None where it was not.
    """

    curve: Curve
    concurrency: int
    total_tok_s: float
    log_sd: float = 0.0
    speedup: float | None = None
    ceilings: tuple[float, float] | None = None


@dataclass(frozen=True)
class Measurements:
    """What a file holds; the first curve is the baseline.

    input_tokens, output_tokens: of a request, where the file says. routes_evenly: the model's weights are random.
    """

    points: tuple[MeasuredPoint, ...]
    input_tokens: int | None = None
    output_tokens: int | None = None
    routes_evenly: bool = False

    @property
    def curves(self) -> list[Curve]:
        return list(dict.fromkeys(point.curve for point in self.points))

    @property
    def baseline(self) -> tuple[MeasuredPoint, ...]:
        """Points of the first curve."""
        first = self.points[0].curve
        return tuple(point for point in self.points if point.curve == first)


def read_measurements(path: Path, shape: MoEShape) -> Measurements:
    """Read a .csv or .json file, as `from_table` and `from_summary` do. Raises FieldError."""
    if not path.is_file():
        raise FieldError("--fit", str(path), "a CSV table by concurrency, or a load test's summary.json")
    if path.suffix == ".json":
        return from_summary(read_json(path, "--fit"), shape)
    try:
        return from_table(path.read_text(encoding="utf-8"), shape)
    except UnicodeDecodeError:
        raise FieldError("--fit", str(path), "a text file") from None


def from_table(text: str, shape: MoEShape) -> Measurements:
    """A table such as `concurrency,na6,na2`: total tok/s of each curve, the first of which is the baseline.

    Columns are called na6, experts32 or na6_experts32; empty cells are left out. Raises FieldError.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [name for name in (rows[0] if rows else {}) if name != CONCURRENCY]
    if not names or CONCURRENCY not in rows[0]:
        raise FieldError("--fit", text[:40], "a CSV table with the columns concurrency, na6 (or experts32), ...")
    curves = {name: _column(name, shape) for name in names}
    points: list[MeasuredPoint] = []
    base: dict[float, float] = {}
    for name in names:
        for row in rows:
            level = _number(row[CONCURRENCY], CONCURRENCY)
            if not level.is_integer():
                raise FieldError("--fit", row[CONCURRENCY], "a whole concurrency in every row")
            if not (row[name] or "").strip():
                continue
            value = _number(row[name], name)
            base.setdefault(level, value)
            speedup = None if name == names[0] else value / base[level]
            points.append(MeasuredPoint(curves[name], int(level), value, speedup=speedup))
    return Measurements(tuple(points))


def from_summary(content: Any, shape: MoEShape) -> Measurements:
    """The summary.json of one load test; arms whose number of experts is not known are left out. Raises FieldError."""
    try:
        (run,) = content["runs"]
        arms = {arm["label"]: arm_curve(arm, shape) for arm in run["arms"]}
        points = [_point(point, arms) for point in content["points"]]
        prompt, output = _prompt_tokens(run, content["points"]), int(run["output_len"])
        evenly = routes_evenly(content["model"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, FieldError):
            raise
        raise FieldError("--fit", f"{type(error).__name__}: {error}", "the summary.json of one load test") from None
    found = tuple(point for point in points if point is not None)
    if not found:
        raise FieldError("--fit", "no point", "closed loops of arms whose experts are known")
    return Measurements(found, prompt, output, evenly)


def _prompt_tokens(run: Mapping[str, Any], points: list[Mapping[str, Any]]) -> int:
    """As asked for, where prompts are random tokens; else what went in for each request."""
    if asked := re.fullmatch(r"random:(\d+)", run["prompts"]):
        return int(asked[1])
    ratios = [_median(point, "input_tok_s") / _median(point, "requests_s") for point in points]
    return max(1, round(float(np.median(ratios))))


def routes_evenly(model: str) -> bool:
    """Whether a load test's model is one of `moe-opt shape-model`, whose weights are random."""
    return re.search(r"-\d+l-\w+-seed\d+$", model) is not None


def arm_curve(arm: Mapping[str, Any], shape: MoEShape) -> Curve | None:
    """The curve of an arm as a load test's summary.json has it; None where the number of experts per token is not
    known. Raises FieldError."""
    na = arm.get("mean_na")
    if na is None:
        return None
    hints = list(arm["hints"].values())
    hint = hints[0][0] if len(hints) == 1 else None
    plan = arm.get("plan")
    tables = None
    if isinstance(hint, dict) and "profile" not in hint:
        phases = {phase: hint.get(phase, hint) for phase in ("prefill", "decode")}
        if all(isinstance(rule, dict) and not {"prefill", "decode"} & set(rule) for rule in phases.values()):
            both = PhasedSchedule(
                *(SkipSchedule.from_object(rule, "hint", Limits.of(shape)) for rule in phases.values())
            )
            tables = both.prefill.expand(shape), both.decode.expand(shape)
    if tables is None or not all(table.is_static for table in tables):
        curve = make_curve(shape, arm["label"], na=min(float(na), shape.top_k))
    else:
        curve = make_curve(shape, arm["label"], tables=tables)
    if plan is not None:
        curve = replace(curve, kept=tuple(plan["kept"]))
    shared = arm.get("consolidated")
    return curve if shared is None else replace(curve, consolidated=Consolidated(**shared))


def _point(point: Mapping[str, Any], arms: Mapping[str, Curve | None]) -> MeasuredPoint | None:
    curve = arms[point["arm"]]
    level = re.fullmatch(r"c(\d+)", point["load"])
    if curve is None or level is None or "total_tok_s" not in point["metrics"]:
        return None
    rounds = np.log([value for value in point["metrics"]["total_tok_s"]["all"] if value > 0])
    speedup = point["speedup"]["total_tok_s"]["median"] if "total_tok_s" in point.get("speedup", {}) else None
    ceilings = None
    if {"bandwidth_share", "compute_share"} <= set(point["metrics"]):
        bandwidth = 1e9 * _median(point, "gb_s") / _median(point, "bandwidth_share")
        ceilings = bandwidth, 1e9 * _median(point, "gflop_s") / _median(point, "compute_share")
    spread = float(rounds.std(ddof=1) / np.sqrt(len(rounds))) if len(rounds) > 1 else 0.0
    return MeasuredPoint(curve, int(level[1]), _median(point, "total_tok_s"), spread, speedup, ceilings)


def _median(point: Mapping[str, Any], tag: str) -> float:
    return float(point["metrics"][tag]["median"])


def _column(name: str, shape: MoEShape) -> Curve:
    found = _COLUMN.fullmatch(name.strip())
    if not found or not any(found.groups()):
        raise FieldError("--fit", name, "columns called na6, experts32 or na6_experts32")
    na, experts = found.groups()
    return make_curve(shape, name, na=float(na) if na else None, experts=int(experts) if experts else None)


def _number(text: str | None, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise FieldError(f"--fit: {column}", text, "a number above 0")
    return value
