"""What the client itself can do: streams and chunks per second against the server without an engine.

    python -m loadtest.ceiling --out docs/results/client_ceiling.json

The server's times are known, so what the client reports can be held against them; both share this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtest.generators import Generators
from loadtest.load import Load
from loadtest.options import numbers
from loadtest.record import Record
from loadtest.results import provenance, spread, write_json
from loadtest.spec import PointSpec
from loadtest.sse_server import Schedule, sse_server

TTFT_MS = 1000.0
"""Long enough for every user to have sent its request before the first token is due."""
PERCENTILES = (50, 90, 99)


def main(
    out: Annotated[Path, typer.Option(help="JSON file of the results.")],
    streams: Annotated[int, typer.Option(min=1, help="Streams at a time.")] = 784,
    chunks: Annotated[str, typer.Option(help="Chunks per second of all streams.")] = "5000,10000,20000,30000,40000",
    seconds: Annotated[float, typer.Option(min=1, help="Time of a burst.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Bursts at every rate.")] = 5,
    processes: Annotated[int, typer.Option(min=1, help="Client processes.")] = 1,
) -> None:
    """Raise the rate until the client falls behind, and compare its percentiles with the schedule."""
    rates = numbers("--chunks", chunks, 1_000_000)
    points = []
    with Generators(processes) as generators:
        for rate in track(rates, console=Console(stderr=True)):
            gap_ms = 1000.0 * streams / rate
            bursts = [_burst(generators, streams, gap_ms, seconds, turn) for turn in range(rounds)]
            points.append(
                {
                    "asked_chunks_s": rate,
                    "gap_ms": gap_ms,
                    **{key: spread([b[key] for b in bursts]) for key in bursts[0]},
                }
            )
    write_json(out, {**provenance("loadtest.ceiling"), "streams": streams, "processes": processes, "points": points})
    _show(points)


def _burst(generators: Generators, streams: int, gap_ms: float, seconds: float, seed: int) -> dict[str, float]:
    tokens = max(2, round(1000 * seconds / gap_ms))
    with sse_server(Schedule((TTFT_MS,), (gap_ms,))) as served:
        records, _, client = generators.run(
            PointSpec(
                url=served.url,
                api="completions",
                model="none",
                load=Load("closed", streams).label,
                seconds=0,
                max_seconds=10 * seconds,
                hints={"": (None, 1.0)},
                prompts="random:32",
                vocab_size=32000,
                output_len=tokens,
                seed=seed,
            )
        )
        late = httpx.get(served.url + "/sent", trust_env=False).json()
    return {
        **_measured(records, gap_ms),
        "client_cores": client.cpu_s / client.wall_s,
        "server_late_p99_ms": late["p99_late_ms"],
    }


def _measured(records: list[Record], gap_ms: float) -> dict[str, float]:
    """Chunks per second, the largest error of a percentile over 1 ms + 1 % of its value, failures."""
    gaps = np.array([1000 * gap for record in records for gap in record.gaps])
    first = min(record.start + record.arrivals[0] for record in records if record.arrivals)
    last = max(record.start + record.e2e for record in records)
    found: dict[str, float] = {
        "chunks_s": len(gaps) / (last - first),
        "failures": float(sum(record.failed for record in records)),
    }
    for q in PERCENTILES:
        found[f"itl_p{q}_error_ms"] = float(np.percentile(gaps, q)) - gap_ms
        tpot = [1000 * record.tpot for record in records if record.tpot is not None]
        found[f"tpot_p{q}_error_ms"] = float(np.percentile(tpot, q)) - gap_ms
    return found


def _show(points: list[dict[str, Any]]) -> None:
    table = Table(
        "asked", "chunks/s", "gap ms", "ITL p50, p99 off by ms", "TPOT p50, p99 off by ms", "client", "server late p99"
    )
    for p in points:
        errors = (
            ", ".join(f"{p[f'{name}_p{q}_error_ms']['median']:+.2f}" for q in (50, 99)) for name in ("itl", "tpot")
        )
        table.add_row(
            f"{p['asked_chunks_s']:,}",
            f"{p['chunks_s']['median']:,.0f}",
            f"{p['gap_ms']:.1f}",
            *errors,
            f"{p['client_cores']['median']:.2f} cores",
            f"{p['server_late_p99_ms']['median']:.1f} ms",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
