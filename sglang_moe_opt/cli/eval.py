"""`moe-opt eval`: accuracy through a served endpoint, schedule by schedule, item by item."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglang_moe_opt.cli.own_server import load_plans, own_server
from sglang_moe_opt.cli.serve import resolve_model
from sglang_moe_opt.schedule import FULL

if TYPE_CHECKING:
    from eval.plans import NamedPlan
    from eval.runner import Request
    from eval.schedules import Labelled

DATA_ENV = "SGLANG_MOE_OPT_DATA"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("eval")(evaluate)


def evaluate(
    url: Annotated[
        str | None, typer.Option(help="A running server. Without it one is started for --model, and stopped.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model to serve; with --url: where config and tokenizer are, if not at the server's path."),
    ] = None,
    profiles: Annotated[
        str | None, typer.Option(help='Schedules: full,fast,na=3,schedule=[6,4,2,5],{"min_ratio": 0.2}.')
    ] = None,
    grid: Annotated[str | None, typer.Option(help="YAML file of schedules, or the name of a shipped one.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks or the groups six, heldout, all. Default: all there is data for.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar=DATA_ENV, help="Local data, TASK/SPLIT.jsonl. Default: Hugging Face hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder. Default: results/eval-TIME.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out; nothing is asked twice.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="HTTP requests at a time.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Prompts in one HTTP request, at most.")] = 64,
    patience: Annotated[float, typer.Option(min=0, help="Seconds after which a silent server is given up.")] = 60,
    config: Annotated[Path | None, typer.Option(help="The server's policy file.")] = None,
    prune_plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="Evaluate --model under this plan too, on a server of its own; repeatable. Default name: the file's.",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Number format of a server started here.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Score a model under several skip schedules and prune plans with lm-eval's tasks, through its endpoint.

    `full` is always among the schedules: everything is compared with it.
    """
    if resume and out is None:
        raise ValueError("--resume: say with --out DIR which run to go on with")
    if url is None and model is None:
        raise ValueError("--url or --model: one of them says what to evaluate")
    if url is not None and prune_plan:
        raise ValueError("--prune-plan: needs --model and no --url: a server is started for each plan")

    from eval.catalog import ALL, SIX, parse_tasks
    from eval.endpoint import Limits
    from eval.runner import Request

    request = Request(
        schedules=_schedules(profiles, grid),
        tasks=parse_tasks(tasks) if tasks else ALL if data_dir else SIX,
        out=out or Path("results") / f"eval-{datetime.now():%Y%m%d-%H%M%S}",
        data_dir=data_dir,
        limit=limit,
        resume=resume,
        model=model if url else None,
        config=config,
        limits=Limits(concurrency=concurrency, batch_prompts=batch, patience_s=patience),
        command=("moe-opt", *sys.argv[1:]),
    )
    request.check()
    try:
        _run(request, url, model, prune_plan or [], dtype, as_json)
    except KeyboardInterrupt:
        typer.echo(f"moe-opt: interrupted; what was answered is in {request.out}: finish with --resume", err=True)
        raise typer.Exit(130) from None


def _run(
    request: Request, url: str | None, model: str | None, prune_plans: Sequence[str], dtype: str, as_json: bool
) -> None:
    from rich.console import Console

    from eval.runner import evaluate as run
    from eval.runner import evaluate_plans
    from sglang_moe_opt.cli.report import report

    console = Console(stderr=True)
    # Threads that spin while they wait lose a small model's steps to whatever else runs here: up to 40 times slower
    # beside one busy process on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def serve(plan: NamedPlan | None) -> AbstractContextManager[str]:
        named = (plan.name, plan.file) if plan else None
        return own_server(str(model), request.config, ["--dtype", dtype], console, named)

    if prune_plans:
        path = resolve_model(str(model))
        evaluate_plans(path, load_plans(prune_plans, path, request.config), serve, request, console)
    else:
        with nullcontext(url) if url else serve(None) as address:
            run(str(address), request, console)
    report([request.out], None, as_json)


def _schedules(profiles: str | None, grid: str | None) -> list[Labelled]:
    """What the command line names, `full` first where it is not among them. Raises FieldError."""
    from eval.schedules import Grid, Labelled, parse_profiles

    wanted = parse_profiles(profiles) if profiles else []
    if grid:
        named = {one.label for one in wanted}
        wanted += [one for one in Grid.load(grid).labelled() if one.label not in named]
    if not any(one.label == FULL for one in wanted):
        wanted.insert(0, Labelled(FULL, FULL))
    return wanted
