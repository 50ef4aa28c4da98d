"""How much a request's answer changes in company: every request alone, then all at once under different schedules.

    python -m loadtest.mixed_batch --dtype bfloat16 --out docs/results/mixed_batch_bf16.json

In fp32 no token may change. In bf16 the engine's own matrix products round differently for another batch size, which
the row `full` shows without any skipping: what the other schedules add to it is what skipping adds.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from loadtest.burst import flush_cache, random_prompts
from loadtest.servers import server
from sglang_moe_opt.cli.serve import has_accelerator, resolve_model
from sglang_moe_opt.model_shape import MoEShape

PORT = 30830


def main(
    out: Annotated[Path, typer.Option(help="JSON file of the results.")],
    model: Annotated[str, typer.Option(help="Folder, hub id, or shape:NAME@LAYERS.")] = "mini-v2",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    requests: Annotated[int, typer.Option(min=2, help="Requests at once.")] = 64,
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 32,
    output_len: Annotated[int, typer.Option(min=2, help="Generated tokens, greedy.")] = 32,
) -> None:
    """Compare greedy tokens and their log-probabilities, alone and in one batch of six schedules and of `full` only."""
    folder = resolve_model(model)
    shape = MoEShape.from_path(folder)
    layers = len(shape.moe_layer_ids)
    hints: list[Any] = [
        "full",
        "fast",
        {"schedule": [shape.top_k, 4, 1, layers]},
        {"layers": [1 + i % 4 for i in range(layers)]},
        {"min_ratio": 0.5},
        {"prefill": "full", "decode": {"na": 1}},
    ]
    prompts = random_prompts(requests, input_len, shape.vocab_size, seed=7)
    mixed = [(ids, hints[i % len(hints)]) for i, ids in enumerate(prompts)]
    flags = ["--dtype", dtype, "--log-level", "warning"]
    with (
        server(folder, on_cpu=not has_accelerator(), policy="builtin", port=PORT, extra=flags) as served,
        httpx.Client(base_url=served.url, timeout=1200) as client,
    ):
        points = []
        for name, work in (("six schedules", mixed), ("full only", [(ids, "full") for ids in prompts])):
            alone = [_answer(client, ids, hint, output_len) for ids, hint in work]
            flush_cache(client, served.url)
            with ThreadPoolExecutor(requests) as pool:
                pending = [pool.submit(_answer, client, ids, hint, output_len) for ids, hint in work]
                together = [answer.result() for answer in pending]
            flush_cache(client, served.url)
            points.append({"batch": name, **_difference(alone, together)})
            print(json.dumps(points[-1]))
    result = {
        "command": " ".join(["python -m loadtest.mixed_batch", *sys.argv[1:]]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("sglang-moe-opt", "sglang", "torch")},
        "model": model,
        "dtype": dtype,
        "requests": requests,
        "hints": hints,
        "input_len": input_len,
        "output_len": output_len,
        "points": points,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(out)


def _answer(client: httpx.Client, ids: list[int], hint: Any, output_len: int) -> list[tuple[int, float]]:
    """(token, log-probability) of each generated token."""
    params = {"temperature": 0, "max_new_tokens": output_len, "ignore_eos": True, "custom_params": {"moe_skip": hint}}
    reply = client.post("/generate", json={"input_ids": ids, "sampling_params": params, "return_logprob": True})
    reply.raise_for_status()
    return [(token, logprob) for logprob, token, _ in reply.json()["meta_info"]["output_token_logprobs"]]


def _difference(alone: list[list[tuple[int, float]]], together: list[list[tuple[int, float]]]) -> dict[str, Any]:
    """Requests with another token somewhere, and how far log-probabilities are apart up to there."""
    changed, gaps = 0, []
    for one, other in zip(alone, together, strict=True):
        for (token, logprob), (other_token, other_logprob) in zip(one, other, strict=True):
            if token != other_token:
                changed += 1
                break
            gaps.append(abs(logprob - other_logprob))
    return {
        "requests_with_another_token": changed,
        "requests": len(alone),
        "tokens_compared": len(gaps),
        "logprob_difference": {
            "median": float(np.median(gaps)),
            "p99": float(np.percentile(gaps, 99)),
            "max": float(np.max(gaps)),
        },
    }


if __name__ == "__main__":
    typer.run(main)
