"""Requests under different schedules run in one batch and do not notice each other."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from server import V2, V3, Kind, Server, Servers

pytestmark = pytest.mark.server

REQUESTS = 64
NEW_TOKENS = 32


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


@pytest.mark.parametrize(
    ("kind", "stagger_s", "least_running"),
    [
        pytest.param(V2, 0.0, REQUESTS / 2, id="v2"),
        pytest.param(V3, 0.0, REQUESTS / 2, id="v3"),
        # The first may be done before the last arrive: what matters is that prompts join running answers.
        pytest.param(V3, 0.01, 4, id="v3-staggered"),
    ],
)
def test_each_request_gets_what_it_gets_alone(
    servers: Servers, kind: Kind, stagger_s: float, least_running: float
) -> None:
    server = servers.get(kind)
    server.flush_cache()
    hints = schedules(server)
    work = [(ids, hints[i % len(hints)]) for i, ids in enumerate(prompts(REQUESTS))]
    alone = [server.tokens(ids, hint, new_tokens=NEW_TOKENS) for ids, hint in work]
    server.flush_cache()

    def send(i: int) -> list[int]:
        time.sleep(i * stagger_s)
        return server.tokens(*work[i], new_tokens=NEW_TOKENS)

    with ThreadPoolExecutor(REQUESTS) as pool:
        futures = [pool.submit(send, i) for i in range(REQUESTS)]
        most_running = 0.0
        while not all(future.done() for future in futures):
            most_running = max(most_running, server.metric("sglang:num_running_reqs"))
            time.sleep(0.05)
        together = [future.result() for future in futures]

    assert most_running > least_running, "the requests did not run in one batch"
    different = [i for i in range(REQUESTS) if alone[i] != together[i]]
    assert not different, f"{len(different)} of {REQUESTS} requests changed in company, the first: {different[0]}"
    by_schedule = {str(hint): alone[i] for i, (_, hint) in enumerate(work)}
    assert len({tuple(tokens) for tokens in by_schedule.values()}) == len(hints)
