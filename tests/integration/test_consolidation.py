"""Requests that consolidate: what they answer, what their neighbours notice, and what the cache keeps of them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from batches import Ask, together
from reference import check_best
from server import V2, V3, Kind, Server, Servers, request_body

from eval.consolidation.arms import Arm
from eval.consolidation.model import Batch, BatchedModel

pytestmark = pytest.mark.server

REQUESTS = 8
NEW_TOKENS = 24
KINDS = [pytest.param(V2, id="v2"), pytest.param(V3, id="v3")]


def prompts(count: int, seed: int, length: int | None = None) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.choices(range(100, 4000), k=length or rng.randint(5, 60)) for _ in range(count)]


def filled(server: Server) -> float:
    """Slots that consolidation filled for `together` so far, once the counter stands still: it comes after answers."""
    found = -1.0
    while found != (found := server.metric("sglang_moe_opt_slots_filled_total", profile="together")):
        time.sleep(0.3)
    return found


def in_one_batch(server: Server, asks: Sequence[Ask], new_tokens: int) -> list[list[int]]:
    """The answers to requests of which every step computes all."""
    answers, running = together(server, asks, new_tokens)
    assert running.count(len(asks)) >= new_tokens - 1 and len(running) <= new_tokens, running
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_do_not_notice(servers: Servers, kind: Kind) -> None:
    server = servers.get(kind)
    server.flush_cache()
    others = ["full", "fast", {"min_ratio": 0.5}, {"prefill": "full", "decode": {"na": 1}}, "apart"]
    asks = [(ids, others[i % len(others)]) for i, ids in enumerate(prompts(15, 1))]
    alone = [server.tokens(*ask, new_tokens=NEW_TOKENS) for ask in asks]
    server.flush_cache()
    joint = [(ids, "together") for ids in prompts(15, 2)]
    mixed = [ask for pair in zip(asks, joint, strict=True) for ask in pair]
    with ThreadPoolExecutor(len(mixed)) as pool:
        answers = list(pool.map(lambda ask: server.tokens(*ask, new_tokens=NEW_TOKENS), mixed))
    assert answers[::2] == alone
    assert server.metric("sglang_moe_opt_slots_filled_total", profile="together") > 0


@pytest.mark.parametrize("kind", KINDS)
def test_alone_a_request_keeps_its_own_experts(servers: Servers, kind: Kind) -> None:
    server = servers.get(kind)
    for ids in prompts(3, 3):
        server.flush_cache()
        plain = server.tokens(ids, {"prefill": "full", "decode": {"na": 2}}, new_tokens=NEW_TOKENS)
        assert server.tokens(ids, "together", new_tokens=NEW_TOKENS) == plain
        assert server.tokens(ids, "apart", new_tokens=NEW_TOKENS) == server.tokens(ids, "full", new_tokens=NEW_TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_as_the_reference_does(servers: Servers, kind: Kind) -> None:
    """Some requests consolidate, some run in full, all begin in the same step; transformers' attention, our rule."""
    server = servers.get(kind)
    asks = [(ids, "together") for ids in prompts(REQUESTS, 4, 20)]
    answers = in_one_batch(server, asks, NEW_TOKENS)
    texts = [ids + answer for (ids, _), answer in zip(asks, answers, strict=True)]
    model = BatchedModel(server.model)
    lengths = [len(ids) for ids, _ in asks]
    batch = Batch.of(texts, lengths, lengths, 0)
    logits = model.logits(batch, Arm(model.shape.top_k, k0=2))
    clear = sum(
        check_best(row[length - 1 : length - 1 + NEW_TOKENS], answer)
        for row, length, answer in zip(logits, lengths, answers, strict=True)
    )
    assert clear > 0.9 * REQUESTS * NEW_TOKENS
    plain = model.logits(batch, Arm(model.shape.top_k))
    assert not torch.equal(plain.argmax(-1), logits.argmax(-1))  # consolidation made a difference


def test_a_large_batch_runs_plainly(v2: Server) -> None:
    """Beyond max_batch (40) nobody consolidates, and `together` is `full` but for the name."""
    asks = [(ids, "together") for ids in prompts(44, 5, 10)]
    before = filled(v2)
    answers = in_one_batch(v2, asks, 4)
    assert filled(v2) == before
    assert answers == in_one_batch(v2, [(ids, "full") for ids, _ in asks], 4)


def test_prompts_are_shared_with_full_and_answers_are_not(v2: Server) -> None:
    (ids,) = prompts(1, 6, 200)
    first = v2.generate(ids, "together", new_tokens=40)
    longer = ids + first["output_ids"]
    assert v2.generate(ids, "full", new_tokens=1)["meta_info"]["cached_tokens"] == len(ids) - 1
    continued = v2.generate(longer, "full", new_tokens=16)
    assert continued["meta_info"]["cached_tokens"] == len(ids)
    v2.flush_cache()
    assert continued["output_ids"] == v2.tokens(longer, "full", new_tokens=16)


def test_what_an_answer_says_of_its_schedule(v2: Server) -> None:
    (ids,) = prompts(1, 7, 20)
    answer = v2.generate(ids, "together", new_tokens=2)
    assert answer["meta_info"]["moe_skip"] == {"profile": "together", "mean_na": 6, "dynamic": True}


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        ({"na": 6, "consolidate": 2}, "custom_params.moe_skip.consolidate: got 2, allowed: only by a profile"),
        ({"na": 6, "consolidate": True}, "consolidate: got True, allowed: only by a profile"),
        ({"na": 6, "consolidate": 0}, "consolidate: got 0, allowed: an integer from 1 to 6"),
        ({"na": 6, "consolidate": "two"}, "consolidate: got 'two', allowed: an integer from 1 to 6"),
        ({"top_p": 0.5, "consolidate": 2}, "consolidate: got 2, allowed: only together with na"),
        ({"prefill": {"na": 6, "consolidate": 2}}, "prefill.consolidate: got 2, allowed: only in decode"),
        ({"consolidate": 2}, "exactly one of na"),
    ],
)
def test_bad_hints(v2: Server, hint: object, message: str) -> None:
    response = v2.client.post("/generate", json=request_body([11, 12], hint, new_tokens=1))
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert v2.is_well()
