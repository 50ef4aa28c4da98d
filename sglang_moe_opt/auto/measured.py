"""Speed-ups by batch size from a load test: the `summary.json` that `moe-opt loadtest` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

from sglang_moe_opt.auto.speedup import Curve
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import MAX_JSON_BYTES, read_text
from sglang_moe_opt.schedule import FULL, SkipSchedule

METRIC: Final = "itl_p50_ms"
"""The median time between tokens is that of a decode step; throughput would count prompts, whose schedule is fixed."""


def read_curves(path: Path, field: str, levels: Mapping[str, SkipSchedule]) -> tuple[Curve, ...]:
    """Curve of each level, over the first of them: ratios of the time between tokens, paired by round.

    A level is found by its name among the load test's profiles, or by its rule (`na=4` is `balanced: {na: 4}`).

    Raises:
        FieldError: the file cannot be read, is none, or lacks a level.
    """

    def refuse(why: str) -> FieldError:
        return FieldError(field, str(path), f"a summary.json of moe-opt loadtest with these levels ({why})")

    try:
        summary = json.loads(read_text(path, MAX_JSON_BYTES))
        kind, runs = summary["kind"], len(summary["runs"])
        times = _times(summary)
        arms = {name: _arm(summary, name, rule) for name, rule in levels.items()}
    except OSError as error:
        raise refuse(error.strerror or "unreadable") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise refuse(f"{type(error).__name__}: {' '.join(str(error).split())[:80]}") from None
    if kind != "loadtest" or runs != 1:
        raise refuse(f"kind {kind!r} of {runs} runs, not one loadtest")
    for name, arm in arms.items():
        if arm is None:
            raise refuse(f"no profile there is {name}")
    first, *_ = arms.values()
    curves = []
    for name, arm in arms.items():
        both = sorted(times[first].keys() & times[arm].keys()) if first in times and arm in times else []
        if not both:
            raise refuse(f"no concurrency at which {name} was measured")
        curves.append(tuple((tokens, _ratio(times[first][tokens], times[arm][tokens])) for tokens in both))
    return tuple(curves)


def _times(summary: dict[str, Any]) -> dict[Any, dict[int, list[float]]]:
    """By arm and concurrency, of each round."""
    sizes = {load["label"]: int(load["value"]) for load in summary["loads"] if load["kind"] == "closed"}
    times: dict[Any, dict[int, list[float]]] = {}
    for point in summary["points"]:
        rounds = [float(value) for value in point["metrics"].get(METRIC, {}).get("all", ())]
        if point["load"] in sizes and rounds and min(rounds) > 0:
            times.setdefault(point["arm"], {})[sizes[point["load"]]] = rounds
    return times


def _arm(summary: dict[str, Any], name: str, rule: SkipSchedule) -> Any:
    """Label of the arm that measured a level; None without one."""
    by_rule = None
    for arm in summary["runs"][0]["arms"]:
        if arm.get("is_baseline_server") or arm.get("plan") or len(arm["hints"]) != 1:
            continue
        ((hint, _),) = arm["hints"].values()
        if name in (arm["label"], hint):
            return arm["label"]
        if by_rule is None and _is_rule(hint, rule):
            by_rule = arm["label"]
    return by_rule


def _is_rule(hint: Any, rule: SkipSchedule) -> bool:
    if hint in (None, FULL):
        return rule == SkipSchedule()
    try:
        return SkipSchedule.from_object(hint, "hint") == rule
    except FieldError:
        return False


def _ratio(base: list[float], times: list[float]) -> float:
    if len(base) == len(times):
        return median(b / t for b, t in zip(base, times, strict=True))
    return median(base) / median(times)
