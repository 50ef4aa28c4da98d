"""The auto profile on a real server: the level of the batch, the cache, the counters, what is refused."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from batches import has_in_flight, stands_still
from server import Server, eventually, request_body

pytestmark = pytest.mark.server

ALONE = {"prefill": "full", "decode": "fast"}
"""What the policy's `auto` runs in a batch of one."""


def prompt(seed: int, length: int = 40) -> list[int]:
    return random.Random(seed).choices(range(100, 4000), k=length)


def decoded(server: Server) -> dict[str, float]:
    """Tokens by level, once the server is idle and has published them."""
    time.sleep(0.3)
    return {
        level: server.metric("sglang_moe_opt_auto_tokens_total", profile="auto", level=level)
        for level in ("full", "fast", "lean")
    }


def test_alone_it_is_the_level_that_the_table_names(v2: Server) -> None:
    for seed in range(5):
        ids = prompt(seed)
        tokens = [v2.tokens(ids, hint, new_tokens=48) for hint in ("auto", ALONE, "full")]
        assert tokens[0] == tokens[1] != tokens[2]


def test_a_level_that_buys_nothing_is_the_full_model(v2: Server) -> None:
    ids = prompt(10)
    assert v2.tokens(ids, "wary", new_tokens=48) == v2.tokens(ids, "full", new_tokens=48)


def test_more_requests_change_the_level_and_it_comes_back(v2: Server) -> None:
    """One long answer; six short ones join it and leave it again."""
    before, switches = decoded(v2), v2.metric("sglang_moe_opt_auto_switches_total", profile="auto")
    long, short = 1200, 60
    with ThreadPoolExecutor(7) as pool:
        first = pool.submit(v2.tokens, prompt(20), "auto", new_tokens=long)
        while not v2.metric("sglang:num_running_reqs"):
            time.sleep(0.01)
        with stands_still(v2):
            others = [pool.submit(v2.tokens, prompt(21 + i), "auto", new_tokens=short) for i in range(6)]
            assert has_in_flight(v2, 7)
        assert all(len(other.result()) == short for other in others)
        assert not first.done(), "the long answer ended too early to see its level return"
        tokens = first.result()
    computed = len(tokens) - 1 + 6 * (short - 1)  # a prompt gives the first token
    eventually(lambda: sum(decoded(v2).values()) - sum(before.values()) >= computed)
    after = decoded(v2)
    by_level = {level: after[level] - before[level] for level in after}
    assert by_level["lean"] == 0  # never below what it gains from
    assert by_level["full"] > 6 * (short - 10)  # six or seven at a time
    assert by_level["fast"] > 100  # alone, before and after
    assert sum(by_level.values()) == computed
    assert v2.metric("sglang_moe_opt_auto_switches_total", profile="auto") >= switches + 2
    assert v2.metric("sglang_moe_opt_auto_level", profile="auto") == 1


def test_neighbours_are_not_affected(v2: Server) -> None:
    work = [(prompt(30 + i), hint) for i, hint in enumerate(["full", "fast", {"na": 1}, "auto", "auto", "full"])]
    alone = [v2.tokens(ids, hint, new_tokens=32) for ids, hint in work]
    v2.flush_cache()
    with ThreadPoolExecutor(len(work)) as pool:
        together = list(pool.map(lambda one: v2.tokens(*one, new_tokens=32), work))
    fixed = [i for i, (_, hint) in enumerate(work) if hint != "auto"]
    assert [together[i] for i in fixed] == [alone[i] for i in fixed]


@pytest.mark.parametrize("profile", ["auto", "wary"])
def test_what_it_generates_stays_out_of_the_cache(v2: Server, profile: str) -> None:
    """`wary` too, which ran the prompt's own schedule: that is not known of a token any more."""
    ids = prompt(40, 200)
    first = v2.generate(ids, profile, new_tokens=48)
    longer = ids + first["output_ids"]

    cached = [v2.generate(ids, hint, new_tokens=1)["meta_info"]["cached_tokens"] for hint in ("full", "fast")]
    assert cached == [len(ids) - 1, 0]  # the prompt is shared with its prefill schedule alone
    continued = v2.generate(longer, "full", new_tokens=16)
    assert continued["meta_info"]["cached_tokens"] == len(ids)
    v2.flush_cache()
    assert continued["output_ids"] == v2.tokens(longer, "full", new_tokens=16)


@pytest.mark.parametrize(
    ("hint", "field"),
    [
        ({"auto": {"levels": ["full", "lean"]}}, "custom_params.moe_skip.auto"),
        ({"decode": "auto"}, "custom_params.moe_skip.decode"),
        ({"prefill": {"auto": {}}}, "custom_params.moe_skip.prefill.auto"),
    ],
)
def test_a_request_cannot_bring_an_auto_rule(v2: Server, hint: object, field: str) -> None:
    response = v2.client.post("/generate", json=request_body([11, 12, 13], hint, new_tokens=1))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert v2.is_well()
