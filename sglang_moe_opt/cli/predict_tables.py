"""What `moe-opt predict` prints."""

from __future__ import annotations

from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

FILE_WIDTH: Final = 160
LETTERS: Final = {"memory": "m", "compute": "c", "communication": "x", "overhead": "o"}


def title(report: dict[str, Any]) -> str:
    """What was predicted, in a line."""
    split = f"tp {report['tp']}" + (f", ep {report['ep']}" if report["ep"] > 1 else "")
    tokens = f"{report['input']} tokens in, {report['output']} out"
    return f"{report['model']} on {report['hardware']}, {split}, {tokens}"


def print_report(report: dict[str, Any]) -> None:
    """The baseline's throughput and latency by concurrency, the others' speed-ups, each with what binds it."""
    console = _console()
    base = report["baseline"]
    others = list(dict.fromkeys(p["label"] for p in report["points"] if p["label"] != base))
    by_key = {(p["label"], p["concurrency"]): p for p in report["points"]}
    console.print(title(report), highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    two_lines = {label: label.replace(", ", "\n") for label in (base, *others)}
    for name in ("c", f"{two_lines[base]}\ntok/s", "TTFT\ns", "TPOT\nms"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("by", *(two_lines[label] for label in others)):
        table.add_column(name, no_wrap=True)
    for level in dict.fromkeys(p["concurrency"] for p in report["points"]):
        first = by_key[base, level]
        cells = [
            str(level),
            f"{first['tok_s']:,.0f}",
            f"{first['ttft_s']:.2f}",
            f"{1000 * first['tpot_s']:.1f}",
            LETTERS[first["regime"]],
        ]
        table.add_row(*cells, *(_speedup(by_key[label, level]) for label in others))
    console.print(table)
    console.print(
        f"tok/s: {report['count']} tokens. Others: speed-up over {base}, ± its error from the parameters' (95 %).\n"
        "by: what takes most of the time: m memory, c compute, x communication, o overhead",
        highlight=False,
    )
    if "want" in report:
        console.print(_want_line(report["want"]), highlight=False)
    if "pays" in report:
        for label, ranges in report["pays"]["concurrency"].items():
            console.print(_pays_line(label, ranges, report["pays"]), highlight=False)
    for note in report["notes"]:
        console.print(f"note: {note}", highlight=False)


def print_fit(report: dict[str, Any]) -> None:
    """The parameters with their intervals, and the errors by curve."""
    console = _console()
    table = Table("parameter", "value", "95 %")
    for name, value in report["parameters"].items():
        ends = report["intervals_95"].get(name)
        table.add_row(
            name, "-" if value is None else f"{value:.4g}", f"{ends[0]:.3g} to {ends[1]:.3g}" if ends else "held"
        )
    console.print(table)
    errors = Table("curve", "points", "tok/s off, median", "most", "speed-up off, median", "most")
    for label, found in report["errors"].items():
        shares = [found.get(f"{kind}_{which}") for kind in ("tok_s", "speedup") for which in ("median", "max")]
        errors.add_row(label, f"{found['points']:.0f}", *("" if s is None else f"{s:.1%}" for s in shares))
    console.print(errors)
    console.print(f"written to {report['file']}", highlight=False, soft_wrap=True)


def machine_line(measured: dict[str, Any]) -> str:
    """A calibration in a line."""
    bandwidth, flops = measured["bandwidth_bytes_s"] / 1e9, measured["flops_s"] / 1e9
    memory = measured["memory_bytes"] / 1e9
    return f"{bandwidth:.1f} GB/s, {flops:.0f} GFLOP/s bf16, {memory:.1f} GB: written to {measured['file']}"


def _console() -> Console:
    """As wide as the terminal; a file has room for every column."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def _speedup(point: dict[str, Any]) -> str:
    low, high = point["speedup_95"]
    return f"{point['speedup']:.2f}±{(high - low) / 2:.2f} {LETTERS[point['regime']]}"


def _want_line(want: dict[str, Any]) -> str:
    answers = []
    for name, what in (("na", "na {}"), ("experts", "{} experts kept")):
        found = want[name]
        answers.append(
            what.format(found) if found is not None else f"no {name} (at most {want[f'most_by_{name}']:.2f})"
        )
    return f"{want['speedup']:g} times at {want['concurrency']}: {', or '.join(answers)}"


def _pays_line(label: str, ranges: list[list[int]], pays: dict[str, Any]) -> str:
    where = ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ranges)
    return f"{label} is {pays['speedup']:g} times as fast at {where or 'no concurrency'} (of 1 to {pays['up_to']})"
