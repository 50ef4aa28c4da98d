"""`moe-opt schedule search` on a model: serves it, searches, writes results and profile."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from sglang_moe_opt.cli.own_server import own_server
from sglang_moe_opt.cli.schedule_search_job import Job, Order, predicted_tok_s, prepare
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_moe_opt.search.model_search import Search

JOURNAL: Final = "journal.jsonl"
LIVE: Final = 64
"""Custom schedules that a server of its own allows at a time."""


def run_model(order: Order, *, as_json: bool) -> None:
    """Search and print the result. Raises ValueError for bad input, before anything is started or written."""
    from rich.console import Console

    from loadtest.servers import end_on_sigterm

    if order.model is None or order.corpus is None:
        missing = "--model" if order.model is None else "--corpus"
        raise FieldError(missing, None, "--model and --corpus, or --from-measurements")
    if (order.profile is None) != (order.policy is None):
        missing, given = ("--policy", "--profile") if order.policy is None else ("--profile", "--policy")
        raise FieldError(missing, None, f"both --profile and --policy, or neither: {given} was given")
    end_on_sigterm()
    # Threads that spin while they wait take the cores from what else runs here; torch reads it when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console = Console(stderr=True)
    job = prepare(order, order.model, order.corpus, console)
    job.open()
    try:
        report = _run(job, order, console)
    except KeyboardInterrupt:
        typer.echo(f"moe-opt: interrupted; what was measured is in {job.out}: --out {job.out} goes on", err=True)
        raise typer.Exit(130) from None
    if order.profile is not None and order.policy is not None:
        from sglang_moe_opt.policy_file import add_profile

        winner = report["winner"]
        loss = winner["loss_percent"]["value"]
        rule = "" if winner["rule"] == "rank" else ", by weight"
        note = f"moe-opt schedule search: mean na {winner['mean_na']:g}{rule}, {loss:+.2f} % bits per byte"
        add_profile(order.policy, order.profile, winner["hint"], replace=order.replace, comment=note)
    typer.echo(json.dumps(report) if as_json else _text(report, job.out, order))


def _run(job: Job, order: Order, console: Console) -> dict[str, Any]:
    """Search, write the results, and return the summary."""
    from eval.journal import Journal
    from sglang_moe_opt.search.by_weight import Stage
    from sglang_moe_opt.search.endpoint import Endpoint
    from sglang_moe_opt.search.model_results import summary
    from sglang_moe_opt.search.model_search import Search
    from sglang_moe_opt.search.sensitivity import Space, Text

    began = time.monotonic()
    shape = job.shape
    lowest = job.policy.limits(shape).min_na
    space = Space(shape.num_moe_layers, lowest, shape.top_k, shape.renormalize)
    with _server(job, order.url, console) as served, _Bars(console) as bars:
        meter = Endpoint(served, Journal(job.out / JOURNAL))
        search = Search(
            space,
            job.budget,
            Text("fit", job.fit_pieces, meter),
            Text("check", job.check_pieces, meter),
            job.settings,
            bars,
            job.max_loss,
        )
        judged = None
        try:
            found = search.run()
            if job.sample is not None:
                judged = Stage(
                    search, found, job.sample, lambda hint, pieces: meter.mean_na(hint, pieces, shape.top_k)
                ).run()
        finally:
            seconds = job.add_seconds(time.monotonic() - began)
    report = {
        "model": job.model,
        **summary(search, found, shape.expert_bytes, judged, 0 if job.sample is None else job.sample.weights.tokens),
        "seconds": round(seconds, 1),
    }
    if job.budget.kind == "tok_s":
        report["winner"]["predicted_tok_s"] = round(predicted_tok_s(order, found.winner.layers), 1)
    _finish(job, search, report)
    return report


def _finish(job: Job, search: Search, report: dict[str, Any]) -> None:
    from eval.runner import git_revision, machine
    from sglang_moe_opt.search.model_results import write

    write(job.out, search, report)
    job.write_manifest(
        {
            **job.read_manifest(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("sglang-moe-opt", "sglang", "torch", "scipy")},
            "machine": machine(),
            "git_revision": git_revision(),
        }
    )


@contextmanager
def _server(job: Job, url: str | None, console: Console) -> Iterator[str]:
    """A running server of this model, or one of its own that knows no profiles."""
    if url is not None:
        from eval.served import connect

        served = connect(url, job.path)
        if served.fingerprint != job.identity["model"]:
            raise ValueError(f"--url: {url} serves {served.title}, not {job.model}")
        yield served.url
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "policy.yaml"
        write_atomically(config, f"min_na: {job.policy.min_na}\nmax_live_schedules: {LIVE}\n")
        # Every prompt is new under its schedule: a prefix cache would only fill up.
        extra = ["--dtype", job.dtype, "--disable-radix-cache"]
        with own_server(job.model, config, extra, console) as own:
            yield own


class _Bars:
    """One line for each stage."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>5.1f} %"))
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console)

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def stage(self, title: str, tokens: int) -> Callable[[int], object]:
        line = self._bars.add_task(title, total=tokens)
        return lambda count: self._bars.advance(line, count)


def _text(report: dict[str, Any], out: Path, order: Order) -> str:
    from sglang_moe_opt.search.model_results import page

    lines = page(report).splitlines()[2:]
    written = [f"profile {order.profile} written to {order.policy}"] if order.profile else []
    return "\n".join([*lines, f"results in {out}", *written])
