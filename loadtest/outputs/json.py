"""summary.json: everything that tables and plots are made from, under keys that stay.

kind, version     "loadtest", 1
model             what was tested
runs[]            name, folder, missing[] points, and the manifest: created, command, arms, loads, versions, ...
arms[], loads[]   labels; loads with kind ("closed", "poisson", "trace") and value
metrics{}         by tag: header, unit, better ("more", "less" or ""), about (how it is derived)
points[]          arm, load, baseline (null for the first arm), caveats[], errors{} with counts, and
  metrics{}       by tag: median, low, high (quartiles over the rounds), all[], unit
  speedup{}       by tag: median, low, high, all[], interval ("95 %" or "range" of fewer than 3 rounds)
servers[]         of runs with prune plans only: server, arm (its first), experts_per_layer[], num_experts, and in MB
                  expert_mb, removed_mb, scheduler_mb, all_mb, freed_mb (null where not known)
explanation{}     where the model's sizes are known, of one device:
  knees{}         by arm: requests at a time from which on computing takes longer than reading (null: none)
  runs{}          by run: hardware, ceilings_probed, bandwidth_bytes_s, flops_s (null where not known), tp, ep, and the
                  cost model's parameters{} with what they were fitted to
  points[]        arm, load, batch, why (a sentence), bound_by (memory, compute, communication, overhead, unexplained),
                  step_s, distinct_experts, experts_counted, shared_bytes, expert_bytes, cache_bytes, flops, bytes_s,
                  flops_s, bandwidth_share, compute_share, ceilings{}, expected_s{} and shares{} of the step by what
                  takes it, measured_tok_s, predicted_tok_s, measured_speedup, predicted_speedup, bytes_ratio,
                  flops_ratio, grown{} since the next smaller load
  lines[], notes[]  in sentences
imported[]        source, concurrency, metrics{} by tag: points of other tools
headlines[], notes[]   in sentences
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadtest.analysis import Analysis, Cell, Run, Spread
from loadtest.folder import KIND
from loadtest.metrics import ALL, BY_TAG
from loadtest.outputs.explained_json import explanation, rounded
from loadtest.outputs.notes import headlines, notes
from loadtest.outputs.servers import ServerRow, servers
from loadtest.outputs.words import interval_kind
from sglang_moe_opt.files import write_atomically

FILE = "summary.json"
VERSION = 1


def write(analysis: Analysis, folder: Path) -> list[Path]:
    write_atomically(folder / FILE, json.dumps(summary(analysis), indent=1, ensure_ascii=False) + "\n")
    return [folder / FILE]


def summary(analysis: Analysis) -> dict[str, Any]:
    """The analysis as a JSON-ready object; the module's text describes it."""
    return {
        "kind": KIND,
        "version": VERSION,
        "model": analysis.model,
        "runs": [_run(run) for run in analysis.runs],
        "arms": list(analysis.arms),
        "loads": [{"label": load.label, "kind": load.kind, "value": load.value} for load in analysis.loads],
        "metrics": {
            metric.tag: {
                "header": metric.header,
                "unit": metric.unit,
                "better": metric.better,
                "about": metric.about,
            }
            for metric in ALL
        },
        "points": [_point(analysis, cell) for cell in analysis.cells],
        **({"servers": [_server(row) for row in rows]} if (rows := servers(analysis)) else {}),
        "explanation": explanation(analysis),
        "imported": [
            {
                "source": point.source,
                "concurrency": point.concurrency,
                "metrics": {tag: rounded(value) for tag, value in point.values.items()},
            }
            for point in analysis.imported
        ],
        "headlines": headlines(analysis),
        "notes": notes(analysis),
    }


def _run(run: Run) -> dict[str, Any]:
    what_ran = run.manifest.model_dump(mode="json", exclude={"kind", "version", "model_config_json"})
    for arm in what_ran["arms"]:  # as before where there are none
        for name in ("consolidated", "plan", "memory"):
            if arm[name] is None:
                del arm[name]
    return {"name": run.name, "folder": run.folder.name, "missing": list(run.missing), **what_ran}


def _server(row: ServerRow) -> dict[str, Any]:
    sizes = {name: getattr(row, name) for name in ("expert_mb", "removed_mb", "scheduler_mb", "all_mb", "freed_mb")}
    return {
        "server": row.name,
        "arm": row.arm,
        "experts_per_layer": list(row.kept),
        "num_experts": row.num_experts,
        **{name: None if value is None else rounded(value) for name, value in sizes.items()},
    }


def _point(analysis: Analysis, cell: Cell) -> dict[str, Any]:
    baseline = analysis.baseline_of(cell.arm)
    return {
        "arm": cell.arm,
        "load": cell.load.label,
        "baseline": None if baseline == cell.arm else baseline,
        "metrics": {tag: {**_spread(s), "unit": BY_TAG[tag].unit} for tag, s in cell.values.items()},
        "speedup": {tag: {**_spread(s), "interval": interval_kind(s)} for tag, s in cell.speedup.items()},
        "errors": cell.errors,
        "caveats": list(cell.caveats),
    }


def _spread(spread: Spread) -> dict[str, Any]:
    low, median, high = map(rounded, (spread.low, spread.median, spread.high))
    return {"median": median, "low": low, "high": high, "all": [rounded(value) for value in spread.all]}
