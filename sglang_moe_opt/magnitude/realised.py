"""How many experts a schedule really keeps: text sent through a server, read off its counters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import httpx
import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.exposition import total
from sglang_moe_opt.policy import CUSTOM

Pieces = Sequence[NDArray[np.int32]]

BATCH: Final = 32
"""Prompts in one HTTP request."""
PATIENCE_S: Final = 60.0
"""Within which the counters must show what was sent."""
SETTLED_S: Final = 0.25
"""Counters that stay the same for so long have all of what was sent before."""


@dataclass(frozen=True)
class Realised:
    """What the engine did with the `tokens` prompt tokens that it computed."""

    mean_na: float
    tokens: int


def realised(url: str, schedule: Mapping[str, Any], pieces: Pieces, top_k: int) -> Realised:
    """Send prompts under a schedule and read how many experts their tokens got.

    Args:
        url: a server with metrics, on which nothing else runs under a custom schedule meanwhile.
        schedule: a hint's object form.
        pieces: prompts as token ids.
        top_k: of the model.

    Raises:
        RuntimeError: the server refuses the hint, stops answering, or does not count.
    """
    with httpx.Client(base_url=url, timeout=None, trust_env=False) as client:
        before = _settled(client)
        namespace = uuid4().hex  # else a second run would find its prompts in the cache and count nothing
        tokens = sum(
            _generate(client, pieces[start : start + BATCH], schedule, namespace)
            for start in range(0, len(pieces), BATCH)
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            after = _counters(client)
            moved = {name: after[name] - before[name] for name in after}
            if moved["tokens"] >= tokens:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url}/metrics counts {moved['tokens']:.0f} of {tokens} tokens under the schedule")
            time.sleep(0.2)
    return Realised(moved["slots_kept"] / moved["slots_offered"] * top_k, tokens)


def first_pieces(pieces: Pieces, tokens: int) -> list[NDArray[np.int32]]:
    """As many of the first pieces as make at least so many tokens, or all."""
    total, chosen = 0, []
    for piece in pieces:
        if total >= tokens:
            break
        chosen.append(piece)
        total += len(piece)
    return chosen


def _generate(client: httpx.Client, pieces: Pieces, schedule: Mapping[str, Any], namespace: str) -> int:
    """Tokens that were computed: prompts that begin alike share what is cached."""
    params = {"max_new_tokens": 1, "temperature": 0, "custom_params": {"moe_skip": schedule}}
    body = {"input_ids": [piece.tolist() for piece in pieces], "sampling_params": params, "extra_key": namespace}
    try:
        reply = client.post("/generate", json=body)
    except httpx.HTTPError as error:
        raise RuntimeError(f"the server stopped answering ({error})") from None
    if reply.status_code != 200:
        raise RuntimeError(f"the server answered HTTP {reply.status_code}: {reply.text[:300]}")
    return sum(one["meta_info"]["prompt_tokens"] - one["meta_info"]["cached_tokens"] for one in reply.json())


def _settled(client: httpx.Client) -> dict[str, float]:
    """The counters once they have stopped moving: a server publishes a little after it has answered."""
    found = _counters(client)
    while True:
        time.sleep(SETTLED_S)
        before, found = found, _counters(client)
        if found == before:
            return found


def _counters(client: httpx.Client) -> dict[str, float]:
    """Tokens, slots kept and slots offered so far under custom schedules."""
    try:
        text = client.get("/metrics").raise_for_status().text
        names = ("tokens", "slots_kept", "slots_offered")
        return {name: total(text, f"sglang_moe_opt_{name}_total", profile=CUSTOM) or 0.0 for name in names}
    except (httpx.HTTPError, ValueError) as error:
        raise RuntimeError(f"{client.base_url}: no /metrics there ({error})") from None
