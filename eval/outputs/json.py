"""summary.json: everything that tables and plots are made from, under keys that stay.

    format, version               "moe-opt-eval-summary", 1
    model, fingerprint, baseline  what was evaluated, and the label of the schedule that all are compared with
    runs[]                        folder, created, command, url, versions, machine, git_revision
    tasks[]                       name, metric, in_average, items, total; chance_percent, full_beats_chance (or null)
    schedules[]                   label, hint, shape, mean_na, mean_na_is_bound, layers, runs, seconds, is_baseline, and
      plan                        null for the whole model, or name, digest, kept[] experts by MoE layer, mean_kept of
                                  num_experts, expert_bytes of whole_expert_bytes, method{}, checkpoint (its fingerprint
                                  where it was written under the plan, or null)
      average, bits_per_byte      MEASURED or null: the unweighted mean of the tasks in the average; all texts together
      tasks{}                     MEASURED by task; metrics{} means in percent of every metric the items have
      noise                       null, or averages[], spread_points, flip_rate, band_points of repeats
    fewest_experts                by measure: label of the lowest mean na that loses less than 1 (point, %), or null
    least_memory                  the same for the smallest weights of routed experts; null without plans
    holm                          comparisons that p_holm is corrected for: headline (each measure), tasks
    incomplete[], notes[]         schedules left out; what to know before quoting a number

MEASURED: value, unit ("percent" or "bits_per_byte"), standard_error, interval_95, runs[], on_pareto_front,
margin_over_chance (share of full's margin over guessing that is left, or null), and change: null for the baseline, else
value, unit ("points" or "percent"), standard_error, interval_95, bootstrap_95, p, p_holm, better, worse (items),
smallest_detectable (power 80 %), verdict. Points: negative is a loss. Percent of bits per byte: positive is a loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.comparison import Change, Comparison, Measure, Measured, Row
from eval.outputs.notes import MARGIN, notes
from eval.scores import Run
from eval.statistics import Interval
from sglang_moe_opt.files import write_atomically

FILE = "summary.json"
FORMAT = "moe-opt-eval-summary"


def write(comparison: Comparison, folder: Path) -> list[Path]:
    write_atomically(folder / FILE, json.dumps(summary(comparison), indent=2, ensure_ascii=False) + "\n")
    return [folder / FILE]


def summary(comparison: Comparison) -> dict[str, Any]:
    """The comparison as a JSON-ready object; the module's text describes it."""
    measures: tuple[Measure, ...] = ("average", "bits_per_byte")
    fewest = {name: comparison.fewest_within(name, MARGIN) for name in measures}
    smallest = {name: comparison.smallest_within(name, MARGIN) for name in measures}
    return {
        "format": FORMAT,
        "version": 1,
        "model": comparison.model,
        "fingerprint": comparison.fingerprint,
        "baseline": comparison.baseline.label,
        "runs": [_run(run) for run in comparison.runs],
        "tasks": [
            {
                "name": task.name,
                "metric": task.metric,
                "in_average": task.in_average,
                "items": task.items,
                "total": task.total,
                "chance_percent": None if task.chance is None else _rounded(100 * task.chance),
                "full_beats_chance": comparison.beats_chance.get(task.name),
            }
            for task in comparison.tasks
        ],
        "schedules": [_schedule(row, comparison) for row in comparison.rows],
        "fewest_experts": {name: row.label if row else None for name, row in fewest.items()},
        "least_memory": {name: row.label if row else None for name, row in smallest.items()},
        "holm": {"headline": comparison.headline_comparisons, "tasks": comparison.task_comparisons},
        "incomplete": list(comparison.incomplete),
        "notes": notes(comparison),
    }


def _run(run: Run) -> dict[str, Any]:
    keys = {"created", "command", "url", "versions", "machine", "git_revision"}
    return {"folder": run.folder.name, **run.manifest.model_dump(mode="json", include=keys)}


def _schedule(row: Row, comparison: Comparison) -> dict[str, Any]:
    texts = {task.name for task in comparison.tasks if task.metric == "bits_per_byte"}
    return {
        "label": row.label,
        "hint": row.hint,
        "shape": row.shape,
        "mean_na": _rounded(row.mean_na),
        "mean_na_is_bound": row.shape == "dynamic",
        "layers": list(row.layers),
        "runs": row.runs,
        "seconds": _rounded(row.seconds),
        "is_baseline": row.is_baseline,
        "plan": row.plan and {**row.plan.model_dump(mode="json"), "mean_kept": _rounded(row.plan.mean_kept)},
        "average": row.average and _measured(row.average, "percent"),
        "bits_per_byte": row.bits_per_byte and _measured(row.bits_per_byte, "bits_per_byte"),
        "tasks": {
            name: _measured(measured, "bits_per_byte" if name in texts else "percent")
            for name, measured in row.tasks.items()
        },
        "metrics": {name: {k: _rounded(v) for k, v in metrics.items()} for name, metrics in row.metrics.items()},
        "noise": row.noise
        and {
            "averages": [_rounded(value) for value in row.noise.averages],
            "spread_points": _rounded(row.noise.spread),
            "flip_rate": _rounded(row.noise.flip_rate),
            "band_points": _rounded(row.noise.band),
        },
    }


def _measured(measured: Measured, unit: str) -> dict[str, Any]:
    return {
        "value": _rounded(measured.estimate.value),
        "unit": unit,
        "standard_error": _rounded(measured.estimate.error),
        "interval_95": _interval(measured.estimate.interval),
        "runs": [_rounded(value) for value in measured.runs],
        "on_pareto_front": measured.on_front,
        "margin_over_chance": None if measured.left is None else _rounded(measured.left),
        "change": measured.change and _change(measured.change),
    }


def _change(change: Change) -> dict[str, Any]:
    d = change.difference
    return {
        "value": _rounded(d.value),
        "unit": d.unit,
        "standard_error": _rounded(d.error),
        "interval_95": _interval(d.interval),
        "bootstrap_95": _interval(d.bootstrap),
        "p": float(f"{d.p:.4g}"),
        "p_holm": float(f"{change.p_adjusted:.4g}"),
        "items": d.items,
        "better": d.better,
        "worse": d.worse,
        "smallest_detectable": _rounded(d.detectable),
        "verdict": change.verdict,
    }


def _interval(interval: Interval) -> list[float]:
    return [_rounded(interval.low), _rounded(interval.high)]


def _rounded(value: float) -> float:
    return round(value, 5)
