"""One schedule of a run against every other one: paired differences of bits per byte, from the run's files alone.

    python -m eval.against results/run found

The report of a run compares everything with `full`; this compares with a schedule of one's choice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eval import statistics
from eval.kept import FILE as KEPT
from eval.results import ResultsError, ResultsFolder, file_name
from sglang_moe_opt.files import write_atomically


def against(folder: Path, label: str) -> list[dict[str, Any]]:
    """Every other schedule of the run: its hint, mean na, change of bits per byte from `full`, and of `label` from it.

    Of schedules by router weight mean na is what `python -m eval.kept` counted, else what they may keep at most.

    Changes are in percent, with the 95 % interval of the paired difference over all texts. Raises ResultsError.
    """
    run = ResultsFolder(folder)
    manifest = run.read_manifest()
    tasks = [task.name for task in manifest.tasks if task.metric == "bits_per_byte"]
    if not tasks:
        raise ResultsError(f"{folder}: no task of that run has bits per byte")
    entries = {entry.label: entry for entry in manifest.schedules}
    for needed in (label, "full"):
        if needed not in entries:
            raise ResultsError(f"{folder}: no schedule {needed!r}, only {', '.join(entries)}")
    counted = run.root / KEPT
    kept = json.loads(counted.read_text(encoding="utf-8"))["mean_na"] if counted.exists() else {}
    nats = {name: _nats(run, name, tasks) for name in entries}
    return [
        {
            "label": name,
            "hint": entry.hint,
            "mean_na": kept.get(name, round(entry.mean_na, 4)),
            "loss_percent": None if name == "full" else _change(nats[name], nats["full"]),
            f"{label}_minus_it_percent": None if name == label else _change(nats[label], nats[name]),
        }
        for name, entry in entries.items()
    ]


def _nats(run: ResultsFolder, label: str, tasks: Sequence[str]) -> statistics.Array:
    items = [item for task in tasks for item in run.read_items(label, task)]
    return np.array([item.nats for item in items], np.float64)


def _change(one: statistics.Array, other: statistics.Array) -> dict[str, Any]:
    found = statistics.paired_change(one, other)
    return {
        "value": round(found.value, 4),
        "interval_95": [round(found.interval.low, 4), round(found.interval.high, 4)],
        "p": float(f"{found.p:.3g}"),
    }


def main(
    folder: Annotated[Path, typer.Argument(help="Results folder of moe-opt eval.")],
    label: Annotated[str, typer.Argument(help="The schedule that is compared with all others.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: against-LABEL.json in the folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare one schedule of a run with all its others, in bits per byte."""
    try:
        rows = against(folder, label)
    except ResultsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    report = {"schedule": label, "command": "python -m eval.against RUN " + label, "rows": rows}
    write_atomically(out or folder / f"against-{file_name(label)}.json", json.dumps(report, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"| schedule | mean na | loss, % | {label} - it, % |\n|---|---:|---:|---:|")
    for row in rows:
        cells = [row["label"], f"{row['mean_na']:.2f}"]
        cells += [_text(row[key]) for key in ("loss_percent", f"{label}_minus_it_percent")]
        typer.echo(f"| {' | '.join(cells)} |")


def _text(change: dict[str, Any] | None) -> str:
    if change is None:
        return ""
    low, high = change["interval_95"]
    return f"{change['value']:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    typer.run(main)
