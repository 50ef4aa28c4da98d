"""`make demo`: one question under `full` and `fast`, then a small load test with its report, in about five minutes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from loadtest.servers import end_on_sigterm, free_port, server
from sglang_moe_opt.cli.main import run as run_command
from sglang_moe_opt.cli.serve import REFERENCE_MODELS, has_accelerator, resolve_model

QUESTION = "What does the word river mean?"
SHAPE = "shape:deepseek-v2-lite@5"


def main(
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("results/demo"),
    question: Annotated[str, typer.Option(help="What the model is asked.")] = QUESTION,
    model: Annotated[str, typer.Option(help="Model of the load test.")] = SHAPE,
    concurrency: Annotated[str, typer.Option(help="Its loads.")] = "2,16,64",
    rounds: Annotated[int, typer.Option(help="How often each point is measured.")] = 3,
) -> None:
    """Serve a small trained model and ask it; then measure what fewer experts are worth on real layer shapes."""
    end_on_sigterm()
    console = Console()
    console.rule(f"1/2  {REFERENCE_MODELS[0]}: one question, two profiles")
    try:
        with console.status("starting the server"):
            answers = ask_both(question)
    except (RuntimeError, httpx.HTTPError) as problem:
        print(f"demo: error: {problem}", file=sys.stderr)
        raise typer.Exit(1) from None
    for profile, (text, mean_na, seconds) in answers.items():
        console.print(f"[bold]{profile}[/bold] ({mean_na} experts per token, {seconds:.2f} s): {text}", highlight=False)
    console.rule(f"2/2  {model}: what that is worth under load")
    folder = out / time.strftime("%Y%m%d-%H%M%S")
    arguments = ["loadtest", "--model", model, "--profiles", "full,fast", "--concurrency", concurrency]
    code = run_command([*arguments, "--rounds", str(rounds), "--seconds", "3", "--out", str(folder)])
    if code == 0:
        console.print(f"report: {(folder / 'report.html').resolve()}", soft_wrap=True, highlight=False)
    raise typer.Exit(code)


def ask_both(question: str) -> dict[str, tuple[str, str, float]]:
    """Answer, mean number of experts and seconds under each profile, from a server that lives for this alone."""
    folder = resolve_model(REFERENCE_MODELS[0])
    extra = ["--log-level", "warning"]
    with (
        server(folder, on_cpu=not has_accelerator(), policy="builtin", port=free_port(), extra=extra) as running,
        httpx.Client(base_url=running.url, timeout=120, trust_env=False) as client,
    ):
        return {profile: _ask(client, question, profile) for profile in ("full", "fast")}


def _ask(client: httpx.Client, question: str, profile: str) -> tuple[str, str, float]:
    body: dict[str, Any] = {
        "model": "default",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 32,
        "temperature": 0,
        "custom_params": {"moe_skip": profile},
    }
    start = time.monotonic()
    response = client.post("/v1/chat/completions", json=body)
    seconds = time.monotonic() - start
    response.raise_for_status()
    text = response.json()["choices"][0]["message"]["content"].strip()
    return text, response.headers["x-moe-skip-mean-na"], seconds


if __name__ == "__main__":
    try:
        typer.run(main)
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started is stopped", file=sys.stderr)
        sys.exit(130)
