"""`python -m loadtest.sse_server --ttft-ms 50 --gap-ms 20,30 --fault http500:10`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from loadtest.sse_server.app import App, serve
from loadtest.sse_server.schedule import Fault, Schedule, parse_times


def main(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    ttft_ms: Annotated[str, typer.Option(help="Times to first token, dealt out in turn.")] = "50",
    gap_ms: Annotated[str, typer.Option(help="Times between tokens, dealt out in turn.")] = "20",
    fault: Annotated[list[str] | None, typer.Option(help="KIND:EVERY, repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder that it says it serves, as SGLang does.")] = None,
    max_running: Annotated[int | None, typer.Option(min=1, help="Further requests wait.")] = None,
) -> None:
    """Answer streaming requests at known times."""
    schedule = Schedule(parse_times("--ttft-ms", ttft_ms), parse_times("--gap-ms", gap_ms))
    app = App(schedule, [Fault.parse(text) for text in fault or []], model, max_running)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(app, port))
    else:
        uvloop.run(serve(app, port))


if __name__ == "__main__":
    typer.run(main)
