"""A cached prompt never serves a request under another schedule, whatever else names the cache."""

from __future__ import annotations

import random

import pytest
from server import CHUNKED_UNISOLATED, Kind, Server, Servers

pytestmark = pytest.mark.server

SCHEDULES = ({"na": 1}, "full")


def prompt(seed: int, length: int = 500) -> list[int]:
    return random.Random(seed).choices(range(100, 4000), k=length)


def cached(answer: dict) -> int:
    return answer["meta_info"]["cached_tokens"]


def test_a_prompt_cached_under_another_schedule_is_computed_anew(v2: Server) -> None:
    ids = prompt(1)
    clean = v2.tokens(ids, "full", new_tokens=32)
    v2.flush_cache()

    reduced = v2.generate(ids, {"na": 1}, new_tokens=32)
    full = v2.generate(ids, "full", new_tokens=32)
    again = [v2.generate(ids, hint, new_tokens=32) for hint in SCHEDULES]

    assert cached(full) == 0
    assert full["output_ids"] == clean
    assert reduced["output_ids"] != clean
    assert [cached(answer) for answer in again] == [len(ids) - 1] * 2
    assert [answer["output_ids"] for answer in again] == [reduced["output_ids"], clean]


@pytest.mark.parametrize("kind", [CHUNKED_UNISOLATED], ids=["unisolated"])
def test_without_isolation_the_same_sequence_goes_wrong(servers: Servers, kind: Kind) -> None:
    server = servers.get(kind)
    server.flush_cache()
    ids = prompt(1)
    clean = server.tokens(ids, "full", new_tokens=32)
    server.flush_cache()

    server.tokens(ids, {"na": 1}, new_tokens=32)
    contaminated = server.generate(ids, "full", new_tokens=32)

    assert cached(contaminated) > 0
    assert contaminated["output_ids"] != clean


def test_two_names_of_one_schedule_share_the_cache(v2: Server) -> None:
    ids = prompt(2)
    v2.generate(ids, "fast", new_tokens=1)

    assert cached(v2.generate(ids, "quick", new_tokens=1)) == len(ids) - 1
    assert cached(v2.generate(ids, {"layers": [2] * len(v2.shape.moe_layer_ids)}, new_tokens=1)) == len(ids) - 1


@pytest.mark.parametrize("field", ["extra_key", "cache_salt"])
def test_a_users_own_namespace_holds_beside_ours(v2: Server, field: str) -> None:
    ids = prompt(3, 200)
    for hint in SCHEDULES:
        v2.generate(ids, hint, new_tokens=1)
    for hint in SCHEDULES:
        assert cached(v2.generate(ids, hint, new_tokens=1, **{field: "tenant-a"})) == 0
    for hint in SCHEDULES:
        assert cached(v2.generate(ids, hint, new_tokens=1, **{field: "tenant-a"})) == len(ids) - 1
        assert cached(v2.generate(ids, hint, new_tokens=1, **{field: "tenant-b"})) == 0


def test_no_extra_key_reaches_into_a_schedules_namespace(v2: Server) -> None:
    from sglang_moe_opt.hints import resolve

    ids = prompt(4, 200)
    v2.generate(ids, {"na": 1}, new_tokens=1)
    digest = resolve({"na": 1}, v2.policy, v2.shape).prefill.digest

    for spoofed in (f"moe-skip:{digest}|", f"moe-skip:{digest}", "moe-skip:"):
        assert cached(v2.generate(ids, "full", new_tokens=1, extra_key=spoofed)) == 0


def test_text_generated_under_another_schedule_is_not_cached_for_prompts(v2: Server) -> None:
    """`thrifty` computes the prompt in full, so it shares that cache; what it generates must stay out of it."""
    ids = prompt(5, 200)
    first = v2.generate(ids, "thrifty", new_tokens=48)
    longer = ids + first["output_ids"]

    assert cached(v2.generate(ids, "full", new_tokens=1)) == len(ids) - 1
    continued = v2.generate(longer, "full", new_tokens=16)
    assert cached(continued) == len(ids)
    v2.flush_cache()
    assert continued["output_ids"] == v2.tokens(longer, "full", new_tokens=16)


def test_generated_text_of_one_schedule_is_cached(v2: Server) -> None:
    ids = prompt(6, 100)
    first = v2.generate(ids, "fast", new_tokens=48)

    assert cached(v2.generate(ids + first["output_ids"], "fast", new_tokens=1)) >= len(ids) + 40
