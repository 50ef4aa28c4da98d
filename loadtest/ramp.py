"""A load that climbs and falls without a pause: is an auto profile ever slower than the best fixed one?

    python -m loadtest.ramp --model shape:deepseek-v2-lite@5 --config policy.yaml --profiles full,balanced,fast,auto \
        --stages 1,8,32,128,32,8,1 --out docs/results/auto_ramp.json

Users come and go as the stages say: who is one too many ends with its answer. Every round each profile runs the whole
ramp, forwards and backwards in turns; tokens are counted by when they arrive, from the first second of a stage on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import gevent
import httpx
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eval.schedules import Labelled, parse_profiles
from loadtest.api import APIS, Ask, encode
from loadtest.burst import flush_cache, random_prompts, run_burst
from loadtest.client import StreamClient
from loadtest.options import numbers
from loadtest.record import Record
from loadtest.results import provenance, ratios, spread, write_json
from loadtest.target import Target, find_target
from sglang_moe_opt.cli.own_server import own_server

SILENCE_S = 120.0


def main(
    out: Annotated[Path, typer.Option(help="JSON file of the results.")],
    profiles: Annotated[str, typer.Option(help="The last is compared with the best of the others.")],
    url: Annotated[str | None, typer.Option(help="A server that runs; else --model.")] = None,
    model: Annotated[str, typer.Option(help="Folder, hub id, or shape:NAME@LAYERS.")] = "shape:deepseek-v2-lite@5",
    config: Annotated[Path | None, typer.Option(help="Policy of the server that --model starts.")] = None,
    stages: Annotated[str, typer.Option(help="Requests at a time, one stage after the other.")] = "1,8,32,128,32,8,1",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of a stage.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Ramps of every profile.")] = 3,
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 24,
    output_len: Annotated[int, typer.Option(min=2, help="Generated tokens.")] = 24,
) -> None:
    """Measure the ramp under every profile, in turns."""
    arms, users = parse_profiles(profiles), numbers("--stages", stages, 4096)
    if len(arms) < 2:
        raise typer.BadParameter(f"--profiles: got {profiles!r}, allowed: fixed profiles, then the one to compare")
    console = Console(stderr=True)
    with ExitStack() as stack:
        extra = ["--log-level", "warning", "--max-running-requests", str(max(users)), "--max-total-tokens", "65536"]
        found = find_target(
            url or stack.enter_context(own_server(model, config, extra, console)), "generate", needs_text=False
        )
        client = stack.enter_context(httpx.Client(timeout=120, trust_env=False))
        progress = stack.enter_context(Progress(console=console))
        task = progress.add_task("warm-up", total=rounds * len(arms))
        vocab = found.served.shape.vocab_size if found.served else 32000
        for arm in arms:
            run_burst(client, found.url, random_prompts(max(users), input_len, vocab, seed=0), 4, arm.hint)
        rates: dict[str, list[list[float]]] = {arm.label: [] for arm in arms}
        for turn in range(rounds):
            for arm in arms if turn % 2 else reversed(arms):
                progress.update(task, description=f"round {turn + 1}/{rounds}, {arm.label}")
                flush_cache(client, found.url)
                prompts = random_prompts(4096, input_len, vocab, seed=turn)
                records = climb(found, arm, users, seconds, prompts, output_len)
                rates[arm.label].append(stage_rates(records, len(users), seconds))
                progress.advance(task)
            write_json(out, result(users, rates, seconds, input_len, output_len))
    _print(result(users, rates, seconds, input_len, output_len))


def climb(
    target: Target, arm: Labelled, users: Sequence[int], seconds: float, prompts: list[list[int]], output_len: int
) -> list[Record]:
    """The requests of one ramp; the first stage begins at 0 of their clock.

    Raises:
        RuntimeError: requests failed.
    """
    api, records = APIS[target.api], list[Record]()
    zero = time.monotonic()

    def wanted() -> int:
        stage = int((time.monotonic() - zero) / seconds)
        return users[stage] if stage < len(users) else 0

    def user(number: int) -> None:
        client = StreamClient(target.url, target.api, SILENCE_S)
        turn = number
        while time.monotonic() - zero < seconds * len(users):
            if number >= wanted():
                gevent.sleep(0.02)
                continue
            ask = Ask(prompts[turn % len(prompts)], None, output_len, arm.hint)
            records.append(client.ask(encode(api.body(ask, target.model)), arm.label, zero))
            turn += max(users)
        client.close()

    gevent.joinall([gevent.spawn(user, number) for number in range(max(users))], raise_error=True)
    if failed := [record.error for record in records if record.failed]:
        raise RuntimeError(f"{arm.label}: {len(failed)} of {len(records)} requests failed, the first: {failed[0]}")
    return records


def stage_rates(records: Sequence[Record], stages: int, seconds: float) -> list[float]:
    """Output tokens per second in each stage, by when they arrived; a chunk carries its share of the answer."""
    tokens = np.zeros(stages)
    for record in records:
        for arrival in record.arrivals:
            stage = int((record.start + arrival) / seconds)
            if stage < stages:
                tokens[stage] += record.output_tokens / len(record.arrivals)
    return [float(rate) for rate in tokens / seconds]


def result(
    users: Sequence[int], rates: dict[str, list[list[float]]], seconds: float, input_len: int, output_len: int
) -> dict[str, Any]:
    """By stage: tok/s of every profile, and the last profile's over the fixed one with the best median, by round."""
    *fixed, compared = rates
    points = []
    for stage, count in enumerate(users):
        of = {label: [ramp[stage] for ramp in ramps] for label, ramps in rates.items()}
        best = max(fixed, key=lambda label: float(np.median(of[label])))
        points.append(
            {
                "stage": stage,
                "users": count,
                "output_tok_s": {label: spread(values) for label, values in of.items()},
                "best_fixed": best,
                "ratio": spread(ratios(of[compared], of[best])),
            }
        )
    shape = {"seconds": seconds, "input_len": input_len, "output_len": output_len}
    return {**provenance("loadtest.ramp"), **shape, "compared": compared, "stages": points}


def _print(found: dict[str, Any]) -> None:
    labels = list(found["stages"][0]["output_tok_s"])
    table = Table("stage", "users", *(f"{label}, tok/s" for label in labels), f"{found['compared']} / best fixed")
    for p in found["stages"]:
        speeds = (f"{p['output_tok_s'][label]['median']:.0f}" for label in labels)
        low, high = p["ratio"]["quartiles"]
        ratio = f"{p['ratio']['median']:.3f} ({low:.3f}-{high:.3f}) of {p['best_fixed']}"
        table.add_row(str(p["stage"]), str(p["users"]), *speeds, ratio)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
