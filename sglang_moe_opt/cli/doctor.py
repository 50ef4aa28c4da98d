"""`moe-opt doctor`: what is installed and patched, what serving would use, and what would not work and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    compat: Annotated[
        bool, typer.Option("--compat", help="Compare all that we rely on in SGLang with what is there.")
    ] = False,
    sglang: Annotated[
        Path | None,
        typer.Option(help="With --compat: a wheel, or a folder with sglang (default: the installed one). Only read."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="For maintainers, with --compat: record that SGLang as the supported one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check this machine and installation; exit code 1 if something would not work."""
    if compat:
        from sglang_moe_opt.cli.doctor_compat import run_compat

        run_compat(sglang, record=record, as_json=as_json)
        return
    if sglang is not None or record:
        raise ValueError(f"{'--record' if record else '--sglang'}: allowed only with --compat")
    from sglang_moe_opt import __version__
    from sglang_moe_opt.doctor import diagnose

    checks = diagnose()
    counts = {state: sum(check.state == state for check in checks) for state in ("ok", "warn", "fail")}
    if as_json:
        typer.echo(json.dumps({"version": __version__, "summary": counts, "checks": [asdict(row) for row in checks]}))
    else:
        topic = ""
        for row in checks:
            if row.topic != topic:
                topic = row.topic
                typer.secho(topic, bold=True)
            colour = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}[row.state]
            typer.echo(f"  {typer.style(f'{row.state:<4}', fg=colour)}  {row.name:<20} {row.detail}")
            if row.fix:
                typer.echo(f"        {'':<20} -> {row.fix}")
        typer.echo(f"{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail")
    if counts["fail"]:
        raise typer.Exit(1)
