"""Evaluations: the schedules of a model, and plans of pruned experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docgen.blocks import Table
from docgen.results import half, load, table

HEADLINE = ("full", "na7", "na6", "na5", "down4", "na4", "up4", "na3", "na2", "na1")
"""What the README shows: the same number everywhere, and the other shapes at a mean of 4."""

METHOD_NAMES = {
    "contribution-32": "`contribution`, dropped",
    "merged_average-32": "`contribution`, `refine --merge average`",
    "merged_neurons-32": "`contribution`, `refine --merge neurons`",
    "compensated-32": "and `refine --compensate`",
    "distilled-32": "and `distill`",
}


def schedules(run: str, which: str = "all") -> str:
    """Every schedule of an evaluation in the run's order, or those of the README (`headline`)."""
    rows = load(f"{run}/summary.json")["schedules"]
    if which == "headline":
        rows = [row for row in rows if row["label"] in HEADLINE]
    heads = ["schedule", "layers", "mean na", "six benchmarks", "bits/byte", "cloze"]
    return table(heads, map(_schedule, sorted(rows, key=_order)))


def _order(row: Mapping[str, Any]) -> tuple[float, str]:
    return -row["mean_na"], "" if row["is_baseline"] else row["label"]


def _schedule(row: Mapping[str, Any]) -> list[str]:
    layers = row["layers"]
    same = len(set(layers)) == 1
    return [
        row["label"],
        str(layers[0]) if same else " ".join(map(str, layers)),
        f"{row['mean_na']:g}",
        _beside_full(row["average"], 1),
        _beside_full(row["bits_per_byte"], 3),
        _beside_full(row["tasks"]["cloze"], 1),
    ]


def _beside_full(measured: Mapping[str, Any], decimals: int) -> str:
    value, change = f"{measured['value']:.{decimals}f}", measured["change"]
    if change is None:
        return f"{value} ± {half(measured['interval_95']):.{decimals}f}"
    percent = change["unit"] == "percent"
    low, high = (f"{bound:+.{2 if percent else 1}f}" for bound in change["interval_95"])
    return f"{value} ({low} to {high}{' %' if percent else ''})"


def half_of_the_experts() -> str:
    """The best plan with half of the experts, on both models, for the README."""
    rows = []
    for model in ("mini-v2", "mini-v3"):
        best = _plans(f"pruned_{model.replace('-', '_')}_heldout")["distilled-32"]
        cells = [best["bits_per_byte"], best["tasks"]["cloze"], best["tasks"]["gloss"]]
        units = [" %", " points" if model == "mini-v2" else "", ""]
        rows.append([model, *(_change(cell, unit) for cell, unit in zip(cells, units, strict=True))])
    return table(["model", "bits/byte", "cloze", "gloss"], rows)


def pruned_heldout() -> str:
    """What every step towards the best plan leaves of the quality, on all held-out text."""
    rows = []
    for model in ("mini-v2", "mini-v3"):
        plans = _plans(f"pruned_{model.replace('-', '_')}_heldout")
        rows.append([model, "full", *_kept(plans["full"])])
        rows += [[model, name, *_kept(plans[label])] for label, name in METHOD_NAMES.items() if label in plans]
    return table(["model", "method", "bits per byte", "cloze", "gloss"], rows)


def pruned_methods(run: str) -> str:
    """Every method with half of the experts on one model, by bits per byte."""
    plans = _plans(run)
    ordered = sorted(plans.values(), key=lambda row: row["bits_per_byte"]["value"])
    rows = []
    for row in ordered:
        name = "full" if row["is_baseline"] else f"`{row['label'].removesuffix('-32')}`"
        average = row["average"]
        shown = f"{average['value']:.1f}" if average["change"] is None else _change(average, "")
        rows.append([name, *_kept(row), shown])
    return table(["method", "bits per byte", "cloze", "gloss", "average"], rows)


def pruned_counts(task: str) -> str:
    """Every way to choose 48, 32 and 16 of 64 experts, on both models: bits per byte lost, or a task's margin kept."""
    columns = []
    for model in ("mini_v2", "mini_v3"):
        half, others = _plans(f"pruned_{model}"), _plans(f"pruned_{model}_48_16")
        columns += [(others, 48), (half, 32), (others, 16)]
    names = [label.removesuffix("-48") for label in columns[0][0] if label.endswith("-48")]
    rows = [[f"`{name}`", *(_left(plans[f"{name}-{count}"], task) for plans, count in columns)] for name in names]
    heads = ["chosen by", *(f"{model}, {count}" for model in ("mini-v2", "mini-v3") for count in (48, 32, 16))]
    return table(heads, rows)


def _left(row: Mapping[str, Any], task: str) -> str:
    if task == "bits_per_byte":
        return _change(row["bits_per_byte"], " %")
    return f"{100 * row['tasks'][task]['margin_over_chance']:.0f} %"


def _plans(run: str) -> dict[str, Mapping[str, Any]]:
    return {row["label"]: row for row in load(f"{run}/summary.json")["schedules"]}


def _kept(row: Mapping[str, Any]) -> list[str]:
    tasks = [row["tasks"]["cloze"], row["tasks"]["gloss"]]
    if row["is_baseline"]:
        return [f"{row['bits_per_byte']['value']:.3f}", *(f"{task['value']:.1f}" for task in tasks)]
    cells = [_change(row["bits_per_byte"], " %")]
    return cells + [f"{_change(task, '')} ({100 * task['margin_over_chance']:.0f} %)" for task in tasks]


def _change(measured: Mapping[str, Any], unit: str) -> str:
    change = measured["change"]
    percent, points = (unit, "") if unit == " %" else ("", unit)
    return f"{change['value']:+.1f}{percent} ± {half(change['interval_95']):.1f}{points}"


TABLES: dict[str, Table] = {
    "schedules": schedules,
    "half_of_the_experts": half_of_the_experts,
    "pruned_heldout": pruned_heldout,
    "pruned_methods": pruned_methods,
    "pruned_counts": pruned_counts,
}
