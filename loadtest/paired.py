"""Compare servers or schedules fairly: the arms take turns, A B B A ..., and ratios are formed pair by pair.

    python -m loadtest.paired --arm plain --arm plugin --concurrency 1,8,64 --out docs/results/full_is_free.json

An arm is ``SERVER[/HINT]``: SERVER is ``plain`` (skipping not configured), ``plugin`` (built-in policy) or
``override=N`` (plain, with ``num_experts_per_tok`` edited to N); HINT is a profile's name or a JSON hint.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.burst import Burst, random_prompts, run_burst
from loadtest.options import numbers
from loadtest.results import provenance, ratios, spread, write_json
from loadtest.servers import server
from sglang_moe_opt.cli.serve import has_accelerator, resolve_model
from sglang_moe_opt.model_shape import MoEShape

SERVER_FLAGS = ("--dtype", "bfloat16", "--max-total-tokens", "65536", "--log-level", "warning")
FIRST_PORT = 30800


def main(
    arm: Annotated[list[str], typer.Option(help="SERVER or SERVER/HINT; the first is the baseline.")],
    out: Annotated[Path, typer.Option(help="JSON file of the results.")],
    model: Annotated[str, typer.Option(help="Folder, hub id, or shape:NAME@LAYERS.")] = "shape:deepseek-v2-lite@5",
    concurrency: Annotated[str, typer.Option(help="Requests at a time, comma-separated.")] = "1,8,64",
    pairs: Annotated[int, typer.Option(min=1, help="Rounds in which every arm runs once.")] = 7,
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 16,
    output_len: Annotated[int, typer.Option(min=2, help="Generated tokens; below 4 at a time more.")] = 32,
) -> None:
    """Measure throughput of every arm, interleaved, and print the ratios to the first arm."""
    folder = resolve_model(model)
    levels = numbers("--concurrency", concurrency, 4096)
    names = list(dict.fromkeys(a.partition("/")[0] for a in arm))
    vocab = MoEShape.from_path(folder).vocab_size
    bursts: dict[tuple[str, int], list[Burst]] = {(a, c): [] for a in arm for c in levels}
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(timeout=60))
        urls = {name: stack.enter_context(_start(name, folder, FIRST_PORT + i)).url for i, name in enumerate(names)}
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        task = progress.add_task("warm-up", total=(pairs + 1) * len(levels) * len(arm))
        for turn in range(pairs + 1):
            for c in levels:
                prompts = random_prompts(c, input_len, vocab, seed=turn * 1000 + c)
                for a in arm if turn % 2 else reversed(arm):
                    name, _, hint = a.partition("/")
                    length = burst_length(output_len, c) if turn else 4
                    burst = run_burst(client, urls[name], prompts, length, _parse_hint(hint))
                    if turn:
                        bursts[a, c].append(burst)
                    progress.update(task, advance=1, description=f"round {turn}/{pairs}, c={c}, {a}")
            if turn:
                write_json(out, _result(arm, levels, bursts, model, turn, input_len, output_len))
    result = _result(arm, levels, bursts, model, pairs, input_len, output_len)
    write_json(out, result)
    _print(result)


def burst_length(output_len: int, concurrency: int) -> int:
    """Generated tokens per request: more where few run at a time, so that a burst outlasts the machine's hiccups."""
    return output_len * max(1, 4 // concurrency)


def _start(name: str, folder: str, port: int) -> Any:
    kind, _, number = name.partition("=")
    if kind not in ("plain", "plugin", "override"):
        raise typer.BadParameter(f"arm {name!r}: allowed servers are plain, plugin, override=N")
    extra = [*SERVER_FLAGS]
    if kind == "override":
        extra += ["--json-model-override-args", json.dumps({"num_experts_per_tok": int(number)})]
    policy = "builtin" if kind == "plugin" else None
    return server(folder, on_cpu=not has_accelerator(), policy=policy, port=port, extra=extra)


def _parse_hint(text: str) -> Any | None:
    return json.loads(text) if text.startswith("{") else text or None


def _result(
    arms: list[str],
    levels: list[int],
    bursts: dict[tuple[str, int], list[Burst]],
    model: str,
    pairs: int,
    input_len: int,
    output_len: int,
) -> dict[str, Any]:
    points = []
    for c in levels:
        for a in arms:
            mine, base = bursts[a, c], bursts[arms[0], c]
            same = [
                x == y for m, b in zip(mine, base, strict=True) for x, y in zip(m.output_ids, b.output_ids, strict=True)
            ]
            points.append(
                {
                    "arm": a,
                    "concurrency": c,
                    "decode_tok_s": spread([b.decode_tok_s for b in mine]),
                    "output_tok_s": spread([b.output_tok_s for b in mine]),
                    "ttft_s": spread([b.ttft_s for b in mine]),
                    "decode_ratio_to_first": spread(
                        ratios([b.decode_tok_s for b in mine], [b.decode_tok_s for b in base])
                    ),
                    "output_ratio_to_first": spread(
                        ratios([b.output_tok_s for b in mine], [b.output_tok_s for b in base])
                    ),
                    "requests_with_tokens_of_first": sum(same),
                    "requests": len(same),
                }
            )
    return {
        **provenance("loadtest.paired"),
        "model": model,
        "pairs": pairs,
        "input_len": input_len,
        "output_len": output_len,
        "points": points,
    }


def _print(result: dict[str, Any]) -> None:
    table = Table("arm", "c", "decode tok/s", "output tok/s", "decode ratio (quartiles)", "same tokens")
    for p in result["points"]:
        ratio = p["decode_ratio_to_first"]
        table.add_row(
            p["arm"],
            str(p["concurrency"]),
            f"{p['decode_tok_s']['median']:.1f}",
            f"{p['output_tok_s']['median']:.1f}",
            f"{ratio['median']:.3f} ({ratio['quartiles'][0]:.3f}-{ratio['quartiles'][1]:.3f})",
            f"{p['requests_with_tokens_of_first']}/{p['requests']}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
