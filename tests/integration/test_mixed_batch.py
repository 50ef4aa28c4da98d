"""Requests under different schedules run in one batch and do not notice each other."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from batches import Ask, running_requests, together
from server import V2, V3, Kind, Server, Servers

pytestmark = pytest.mark.server

REQUESTS = 64
NEW_TOKENS = 32
STAGGER_S = 0.01
KINDS = [pytest.param(V2, id="v2"), pytest.param(V3, id="v3")]


def schedules(server: Server) -> list[object]:
    layers = len(server.shape.moe_layer_ids)
    return [
        "full",
        "fast",
        {"schedule": [6, 4, 1, layers]},
        {"layers": [1 + i % 4 for i in range(layers)]},
        {"min_ratio": 0.5},
        {"prefill": "full", "decode": {"na": 1}},
    ]


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(7)
    return [rng.choices(range(100, 4000), k=rng.randint(1, 60)) for _ in range(count)]


def work(server: Server) -> list[Ask]:
    hints = schedules(server)
    return [(ids, hints[i % len(hints)]) for i, ids in enumerate(prompts(REQUESTS))]


def alone(server: Server, asks: list[Ask]) -> list[list[int]]:
    """What each answers with nobody beside it; the cache is empty afterwards."""
    server.flush_cache()
    answers = [server.tokens(*ask, new_tokens=NEW_TOKENS) for ask in asks]
    server.flush_cache()
    by_schedule = {str(hint): answer for (_, hint), answer in zip(asks, answers, strict=True)}
    assert len({tuple(tokens) for tokens in by_schedule.values()}) == len(schedules(server))
    return answers


def check_same(asked_alone: list[list[int]], in_company: list[list[int]]) -> None:
    different = [i for i in range(REQUESTS) if asked_alone[i] != in_company[i]]
    assert not different, f"{len(different)} of {REQUESTS} requests changed in company, the first: {different[0]}"


@pytest.mark.parametrize("kind", KINDS)
def test_each_request_gets_what_it_gets_alone(servers: Servers, kind: Kind) -> None:
    server = servers.get(kind)
    asks = work(server)
    expected = alone(server, asks)
    answers, running = together(server, asks, NEW_TOKENS)
    # On V3 long prompts come in chunks, beside which those decode whose prompts are done.
    assert running.count(REQUESTS) > NEW_TOKENS / 2, running
    check_same(expected, answers)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_prompts_join_running_answers(servers: Servers, kind: Kind) -> None:
    server = servers.get(kind)
    asks = work(server)
    expected = alone(server, asks)
    before = server.log.stat().st_size

    def send(i: int) -> list[int]:
        time.sleep(i * STAGGER_S)
        return server.tokens(*asks[i], new_tokens=NEW_TOKENS)

    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(send, range(REQUESTS)))
    running = running_requests(server, before)
    assert max(running) >= 4 and len(set(running)) >= 4, f"nobody joined anybody: {running}"
    check_same(expected, answers)
