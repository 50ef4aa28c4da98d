"""One burst: c prompts at once, every one answered to the same length; tokens per second from the server's clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np


@dataclass(frozen=True)
class Burst:
    """What one burst measured.

    Attributes:
        decode_tok_s: output tokens per second from the moment when every request has its first token.
        output_tok_s: output tokens per second from sending to the last answer, prefill included.
        ttft_s: median time to first token.
        output_ids: the generated tokens of each request.
    """

    decode_tok_s: float
    output_tok_s: float
    ttft_s: float
    output_ids: list[list[int]]


def run_burst(
    client: httpx.Client, url: str, prompts: list[list[int]], output_len: int, hint: Any | None = None
) -> Burst:
    """Send ``prompts`` (token ids) in one request of the batch API, greedy, ``output_len`` tokens each.

    The prefix cache is flushed first, so that a repeated prompt is computed anew.
    """
    flush_cache(client, url)
    answers = generate(client, url, prompts, output_len, hint)
    metas = [answer["meta_info"] for answer in answers]
    first = np.array([m["request_received_ts"] + m["first_token_latency"] for m in metas])
    end = max(m["request_finished_ts"] for m in metas)
    begin = min(m["request_received_ts"] for m in metas)
    generated = sum(m["completion_tokens"] for m in metas)
    return Burst(
        # One token of each request is out by then; earlier starters are a few tokens ahead, counted alike in all arms.
        decode_tok_s=(generated - len(metas)) / (end - first.max()),
        output_tok_s=generated / (end - begin),
        ttft_s=float(np.median(first - begin)),
        output_ids=[answer["output_ids"] for answer in answers],
    )


def generate(
    client: httpx.Client, url: str, prompts: list[list[int]], output_len: int, hint: Any | None = None
) -> list[dict[str, Any]]:
    """SGLang's answers to ``prompts`` (token ids), in one request, greedy, ``output_len`` tokens each."""
    params: dict[str, Any] = {"temperature": 0, "max_new_tokens": output_len, "ignore_eos": True}
    if hint is not None:
        params["custom_params"] = {"moe_skip": hint}
    response = client.post(url + "/generate", json={"input_ids": prompts, "sampling_params": params}, timeout=1200)
    response.raise_for_status()
    answers: list[dict[str, Any]] = response.json()
    return answers


def flush_cache(client: httpx.Client, url: str, patience_s: float = 60) -> None:
    """Empty the prefix cache; the server refuses while anything runs, such as its own warm-up.

    Raises:
        httpx.HTTPStatusError: it still refuses after ``patience_s`` seconds.
    """
    end = time.monotonic() + patience_s
    while (response := client.post(url + "/flush_cache")).status_code != 200 and time.monotonic() < end:
        time.sleep(0.1)
    response.raise_for_status()


def random_prompts(count: int, length: int, vocab: int, seed: int) -> list[list[int]]:
    """``count`` prompts of ``length`` uniform token ids, the first 16 ids (special tokens) left out."""
    return np.random.default_rng(seed).integers(16, vocab, size=(count, length)).tolist()
