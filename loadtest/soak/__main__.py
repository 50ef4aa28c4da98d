"""`python -m loadtest.soak`: serve a model, soak it, say whether anything leaked, failed or was counted wrong."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from loadtest.results import provenance, write_json
from loadtest.servers import end_on_sigterm, free_port, server
from loadtest.soak.run import soak
from loadtest.soak.traffic import policy
from loadtest.soak.verdict import Settings, lines
from sglang_moe_opt.cli.serve import has_accelerator, resolve_model
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import read_config


def main(
    model: Annotated[str, typer.Option(help="A mini model, or a folder with a checkpoint.")] = "mini-v2",
    minutes: Annotated[float, typer.Option(help="How long.")] = 30.0,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 32,
    reload_every: Annotated[float, typer.Option(help="Mean seconds between what the operator does.")] = 5.0,
    warm_up: Annotated[float, typer.Option(help="Share of the run before memory counts.")] = 0.25,
    allowed_growth: Annotated[float, typer.Option(help="MiB per hour that a process may grow by.")] = 32.0,
    seed: Annotated[int, typer.Option(help="Of what is sent.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON file of the results.")] = Path("results/soak.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Mixed profiles, custom schedules, bad hints, cut streams, policy reloads; exit status 1 where a check fails."""
    for name, value in (("--minutes", minutes), ("--concurrency", concurrency), ("--reload-every", reload_every)):
        if value <= 0:
            raise FieldError(name, value, "a number above 0")
    if not 0 <= warm_up < 1:
        raise FieldError("--warm-up", warm_up, "a share from 0 to below 1")
    end_on_sigterm()
    folder = resolve_model(model)
    vocabulary = int(read_config(folder)["vocab_size"])
    settings = Settings(minutes, concurrency, reload_every, warm_up, allowed_growth, seed)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "policy.yaml"
        file.write_text(policy(1), encoding="utf-8")
        key = secrets.token_urlsafe(16)
        # In float32 a token does not depend on the company of its request, so that answers can be compared.
        extra = ["--dtype", "float32", "--admin-api-key", key, "--log-level", "warning"]
        with server(folder, on_cpu=not has_accelerator(), policy=str(file), port=free_port(), extra=extra) as running:
            found = soak(running, settings, file, key, vocabulary)
    result = {"kind": "soak", "model": model, **provenance("loadtest.soak"), **found}
    write_json(out, result)
    typer.echo(json.dumps(result) if as_json else "\n".join(lines(result)))
    raise typer.Exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        print(f"soak: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("soak: interrupted; everything it started is stopped", file=sys.stderr)
        sys.exit(130)
