"""`moe-opt doctor --compat`: item by item, what of SGLang that we rely on is unchanged, changed, moved or gone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from sglang_moe_opt.compat import Report, Source, compare
from sglang_moe_opt.compat.pinned import Pinned
from sglang_moe_opt.compat.pinned import record as record_source
from sglang_moe_opt.compat.reliance import read_reliance
from sglang_moe_opt.patches import PatchSet
from sglang_moe_opt.sglang_version import SUPPORTED, is_supported

_COLOURS = {"changed": typer.colors.YELLOW, "moved": typer.colors.YELLOW, "gone": typer.colors.RED}
_PLURALS = {"patch": "patches"}


def run_compat(place: Path | None, *, record: bool, as_json: bool) -> None:
    """Compare or record, and print; exit code 1 unless everything is unchanged and the version is supported.

    Args:
        place: wheel or folder; None is the installed SGLang.
        record: write what is there as the record, in place of comparing with it.
        as_json: print one JSON object.

    Raises:
        ValueError: there is no SGLang, or the record is out of step with our code or the supported range.
    """
    source = Source.installed() if place is None else Source(place)
    reliance = read_reliance()
    if record:
        if not is_supported(source.version):
            raise ValueError(
                f"--record: sglang {source.version} is not in the supported range {SUPPORTED} (sglang_version.py)"
            )
        pinned = record_source(reliance, source)
        pinned.save()
        size = len(pinned.hooks) + len(pinned.imports) + len(pinned.attributes) + len(pinned.fields)
        size += len(pinned.flags) + len(pinned.environment)
        typer.echo(json.dumps({"recorded": size, "sglang": pinned.sglang}) if as_json else f"recorded {size} items")
        return
    report = compare(source, reliance, Pinned.load(), PatchSet.load())
    if as_json:
        typer.echo(json.dumps(to_object(report)))
    else:
        _print(report)
    if not (report.unchanged and report.supported):
        raise typer.Exit(1)


def to_object(report: Report) -> dict[str, object]:
    """The report as JSON has it."""
    return {
        "sglang": report.sglang,
        "place": report.place,
        "recorded": report.pinned,
        "supported": SUPPORTED,
        "is_supported": report.supported,
        "unchanged": report.unchanged,
        "counts": report.counts(),
        "items": [asdict(item) for item in report.items],
    }


def _print(report: Report) -> None:
    typer.echo(f"sglang {report.sglang} in {report.place}, against the record of {report.pinned}")
    for kind, counts in report.counts().items():
        told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items(), key=lambda pair: -pair[1]))
        typer.secho(f"{_PLURALS.get(kind, kind + 's'):<11} {told}", bold=True)
        for item in report.items:
            if item.kind == kind and item.state != "unchanged":
                state = typer.style(f"{item.state:<7}", fg=_COLOURS[item.state])
                typer.echo(f"  {state}  {item.name}" + (f"   ({item.reason})" if item.reason else ""))
                typer.echo(f"           {item.detail}")
    if not any(item.kind == "patch" for item in report.items):
        typer.echo("patches     none in the series")
    verdict = "everything that we rely on is unchanged" if report.unchanged else "see docs/upgrading.md for what to do"
    within = "in" if report.supported else "not in"
    typer.echo(f"{verdict}; sglang {report.sglang} is {within} the supported range {SUPPORTED}")
