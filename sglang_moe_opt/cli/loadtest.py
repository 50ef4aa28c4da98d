"""`moe-opt loadtest`: throughput and latency against concurrency, for every profile, in turns, with a report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglang_moe_opt.cli.eval import DATA_ENV
from sglang_moe_opt.cli.own_server import load_plans, own_servers
from sglang_moe_opt.cli.serve import has_accelerator, resolve_model
from sglang_moe_opt.fields import FieldError

if TYPE_CHECKING:
    from rich.console import Console

    from loadtest.load import Load
    from loadtest.sweep import Options
    from loadtest.target import Target

SPARE = 16
"""Tokens of the context that no prompt takes: a chat template's, for instance."""
API_KEY_ENV = "MOE_OPT_API_KEY"


def register(app: typer.Typer) -> None:
    app.command("loadtest")(loadtest)


def loadtest(
    url: Annotated[str | None, typer.Option(help="Server to test. Else --model starts one for this run.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder, hub id or shape:NAME@LAYERS to serve; with --url: where its config is.")
    ] = None,
    profiles: Annotated[
        str, typer.Option(help='Curves: full,fast,na=3,{"min_ratio": 0.2}; the first is compared with.')
    ] = "full,na=4,na=2",
    mix: Annotated[
        list[str] | None, typer.Option(help="A curve of users with different profiles: fast=70,full=30. Repeatable.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Another server as a curve in the same run: NAME=URL. Repeatable.")
    ] = None,
    prune_plan: Annotated[
        list[str] | None,
        typer.Option(help="A plan to serve beside the whole model, every profile a curve: NAME=FILE. Repeatable."),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Requests at a time, comma-separated. Default: the paper's, 2 to 784.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Requests per second (Poisson) in place of concurrency.")] = None,
    trace: Annotated[
        str | None, typer.Option(help="CSV of arrivals (TIMESTAMP,ContextTokens,GeneratedTokens) to replay.")
    ] = None,
    speed: Annotated[str, typer.Option(help="Times as fast as the trace was recorded, comma-separated.")] = "1",
    prompts: Annotated[
        str, typer.Option(help="random:LEN, mt-bench, gsm8k, arena-hard, vicuna, sharegpt:FILE, jsonl:FILE[:FIELD].")
    ] = "random:32",
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 32,
    data_dir: Annotated[Path | None, typer.Option(envvar=DATA_ENV, help="Where the prompt files are.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Every point so many times, in turns.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="A point lasts at least so long, and a request each.")] = 5,
    max_seconds: Annotated[float, typer.Option(min=1, help="At this time a point is cut off.")] = 300,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests of a point, in place of --seconds.")] = None,
    ramp: Annotated[float, typer.Option(min=0, help="Seconds over which users begin; not measured.")] = 0,
    silence: Annotated[float, typer.Option(min=1, help="Seconds without a byte: the request has failed.")] = 300,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait for a server that went away.")] = 60,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Client processes.")] = 1,
    goodput: Annotated[str, typer.Option(help="Bounds in milliseconds: 'ttft:500 tpot:50'.")] = "",
    api: Annotated[str, typer.Option(help="auto, generate, completions or chat.")] = "auto",
    api_key: Annotated[str | None, typer.Option(envvar=API_KEY_ENV, help="Sent as a bearer token.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and arrivals.")] = 0,
    config: Annotated[Path | None, typer.Option(help="The server's policy file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder. Default: results/loadtest-TIME.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    import_: Annotated[
        list[Path] | None, typer.Option("--import", help="bench_serving results (JSONL) to show beside. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Sweep a server's load: closed loop by default, open loop with --rate or --trace."""
    if url is None and model is None:
        raise ValueError("--url or --model: one of them says what to test")
    if resume and out is None:
        raise ValueError("--resume: say with --out DIR which run to go on with")
    if url is not None and prune_plan:
        raise ValueError(
            "--prune-plan is for servers that --model starts: show those that run with --baseline NAME=URL"
        )
    from loadtest.metrics.goodput import parse_goodput
    from loadtest.servers import end_on_sigterm
    from loadtest.sweep import Options

    end_on_sigterm()
    options = Options(
        loads=_loads(concurrency, rate, trace, speed),
        prompts=prompts,
        output_len=output_len,
        rounds=rounds,
        seconds=seconds,
        max_seconds=max(max_seconds, seconds),
        ramp_s=ramp,
        requests=requests,
        silence_s=silence,
        patience_s=patience,
        processes=processes,
        seed=seed,
        data_dir=str(_prompt_folder(data_dir)) if data_dir else None,
        trace=trace,
        goodput_ms=parse_goodput(goodput),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        command=("moe-opt", *_without_key(sys.argv[1:])),
        resume=resume,
    )
    folder = out or Path("results") / f"loadtest-{datetime.now():%Y%m%d-%H%M%S}"
    curves = _Curves(profiles, mix or [], _named(baseline or []), prune_plan or [], config)
    try:
        _run(options, curves, url, model, api, folder, tuple(import_ or ()), as_json)
    except KeyboardInterrupt:
        typer.echo(f"moe-opt: interrupted; what was measured is in {folder}: go on with --resume", err=True)
        raise typer.Exit(130) from None


@dataclass(frozen=True)
class _Curves:
    """What to draw: schedules of the model, mixes of them, other servers by name, and plans as NAME=FILE."""

    profiles: str
    mixes: Sequence[str]
    others: Mapping[str, str]
    plans: Sequence[str]
    config: Path | None


def _run(
    options: Options,
    curves: _Curves,
    url: str | None,
    model: str | None,
    api: str,
    folder: Path,
    imported: tuple[Path, ...],
    as_json: bool,
) -> None:
    from rich.console import Console

    from loadtest.arms import WHOLE, build_arms, parse_curves
    from loadtest.folder import LoadtestFolder
    from loadtest.generators import GeneratorError
    from loadtest.prompts import parse
    from loadtest.sweep import Sweep, SweepError, is_here
    from loadtest.target import find_target
    from sglang_moe_opt.cli.report import report

    # Refuse what is wrong before a server starts.
    parse(options.prompts, vocab_size=1 << 16, data_dir=options.data_dir, seed=0)
    named = load_plans(curves.plans, resolve_model(str(model)), curves.config) if curves.plans else ()
    plans = {plan.name: plan for plan in named}
    wanted = parse_curves(curves.profiles, curves.mixes, plans, curves.others)
    needs_text = not options.prompts.startswith("random:")
    console = Console(stderr=True)
    with ExitStack() as stack:
        addresses = dict(curves.others)
        if url:
            addresses[WHOLE] = url
        else:
            files = {name: plan.file for name, plan in plans.items()}
            own = stack.enter_context(own_servers(str(model), curves.config, _room(options), console, files))
            addresses |= {name: running.url for name, running in own.items()}
            if plans:
                options = replace(options, memory={running.url: running.resident for running in own.values()})
        target = find_target(addresses.pop(WHOLE), api, needs_text=needs_text, model=model if url else None)
        servers = {WHOLE: target}
        servers |= {name: find_target(other, api, needs_text=needs_text) for name, other in addresses.items()}
        if plans:
            servers |= {name: servers[name].known_under(plan) for name, plan in {WHOLE: None, **plans}.items()}
        targets = {server.url: server for server in servers.values()}
        arms = build_arms(wanted, servers, curves.config)
        if options.trace:
            options = replace(options, max_input=_longest_prompt(options, target, console))
        if is_here(target.url) and not has_accelerator():
            from loadtest.probe import Probe

            probe = Probe()
            options = replace(options, probe=lambda: probe.machine(reads=5, products=2))
        sweep = Sweep(arms, targets, options, LoadtestFolder(folder), console)
        problem: str | None = None
        try:
            sweep.run()
        except (SweepError, GeneratorError) as error:
            if not any((folder / "points").glob("*.json")):
                raise
            problem = str(error)
    report([folder], None, as_json, list(imported))
    if problem is None and sweep.failures:
        problem = f"{sweep.failures} requests failed; see the table of points in {folder / 'report.html'}"
    if problem:
        raise RuntimeError(problem)


def _longest_prompt(options: Options, target: Target, console: Console) -> int:
    """What the server's context leaves beside the answer; says how much of the trace that cuts."""
    from loadtest.arrivals import trace

    longest = max(1, target.served.context - options.output_len - SPARE) if target.served else options.max_input
    for load in options.loads:
        found = trace(str(options.trace), load.value, options.seconds, longest, options.output_len)
        console.print(
            f"{load.label}: {len(found.arrivals)} requests in {options.seconds:g} s; {found.clipped} of them cut to "
            f"{longest} tokens in and {options.output_len} out"
        )
    return longest


def _loads(concurrency: str | None, rate: str | None, trace: str | None, speed: str) -> list[Load]:
    """Raises FieldError where options of two kinds of load are given."""
    from loadtest.load import PAPER_LEVELS, Load, parse_levels

    given = [name for name, value in (("--concurrency", concurrency), ("--rate", rate), ("--trace", trace)) if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: only one of them says what load to put on")
    if rate:
        return parse_levels("--rate", rate, "poisson")
    if trace:
        return parse_levels("--speed", speed, "trace")
    if concurrency:
        return parse_levels("--concurrency", concurrency, "closed")
    return [Load("closed", level) for level in PAPER_LEVELS]


def _named(baselines: list[str]) -> dict[str, str]:
    named = {}
    for text in baselines:
        name, _, address = text.partition("=")
        if not name or not address.startswith(("http://", "https://")):
            raise FieldError("--baseline", text, "NAME=URL such as llama.cpp=http://localhost:8080")
        named[name] = address
    return named


def _prompt_folder(data_dir: Path) -> Path:
    """The prompts' own folder inside a data folder, where it has one."""
    inner = data_dir / "loadtest"
    return inner if inner.is_dir() else data_dir


def _without_key(arguments: list[str]) -> list[str]:
    """The command line for the record, without the secret."""
    shown, hide = [], False
    for argument in arguments:
        shown.append("..." if hide else "--api-key=..." if argument.startswith("--api-key=") else argument)
        hide = argument == "--api-key"
    return shown


def _room(options: Options) -> list[str]:
    """Arguments of a server with room for the largest load."""
    most = max((load.concurrency or 256 for load in options.loads), default=256)
    extra = ["--log-level", "warning", "--max-running-requests", str(most)]
    if has_accelerator():
        return extra
    length = int(options.prompts.partition(":")[2]) if options.prompts.startswith("random:") else 1024
    return [*extra, "--max-total-tokens", str(max(65536, most * (length + options.output_len + 8)))]
