"""`moe-opt doctor`: what is installed and patched, what serving would use, and what would not work and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Check this machine and installation; exit code 1 if something would not work."""
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
