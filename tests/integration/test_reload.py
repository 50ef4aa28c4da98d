"""The policy is reloaded while two tensor-parallel ranks serve: who runs what, before and after."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server import ADMIN_KEY, POLICY, V2, Server, Servers, eventually, request_body, two_ranks

pytestmark = [pytest.mark.server, pytest.mark.slow]

KIND = two_ranks(V2)
PATH = "/moe_opt/profiles"
AUTH = {"authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(params=[KIND], ids=["v2-tp2"])
def server(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Serves the policy of the tests again afterwards."""
    server = servers.get(request.param)
    assert server.client.post("/flush_cache", headers=AUTH).status_code == 200
    yield server
    assert reload(server, POLICY).status_code == 200


def prompt(seed: int) -> list[int]:
    return random.Random(seed).choices(range(100, 4000), k=200)


def reload(server: Server, policy: str, key: str = ADMIN_KEY) -> httpx.Response:
    server.log.with_suffix(".yaml").write_text(policy)
    return server.client.post(PATH, headers={"authorization": f"Bearer {key}"})


def changed(old: str, new: str) -> str:
    assert POLICY.count(old) == 1
    return POLICY.replace(old, new)


def test_a_redefined_profile_runs_and_caches_anew(server: Server) -> None:
    ids = prompt(1)
    answers = {na: server.tokens(ids, {"na": na}, new_tokens=32) for na in (2, 3)}
    assert answers[2] != answers[3]
    other = prompt(2)
    server.generate(other, "fast", new_tokens=1)  # cached under the definition of now, and only under that
    assert server.tokens(ids, "fast", new_tokens=32) == answers[2]

    assert reload(server, changed("fast: {na: 2}", "fast: {na: 3}")).json()["redefined"] == ["fast", "auto", "wary"]

    assert server.tokens(ids, "fast", new_tokens=32) == answers[3]
    assert server.generate(other, "fast", new_tokens=1)["meta_info"]["cached_tokens"] == 0
    assert server.generate(other, "quick", new_tokens=1)["meta_info"]["cached_tokens"] == len(other) - 1


def test_a_running_request_keeps_its_schedule_and_the_next_meets_the_new_default(server: Server) -> None:
    ids, new_tokens = prompt(3), 300
    known = {hint: server.tokens(ids, {"na": na}, new_tokens=new_tokens) for hint, na in (("fast", 2), ("lean", 1))}
    body = request_body(ids, "fast", new_tokens=new_tokens, stream=True)
    with server.client.stream("POST", "/generate", json=body) as stream:
        lines = stream.iter_lines()
        first = read(next(lines))
        assert first["meta_info"]["completion_tokens"] < new_tokens
        assert server.client.get(PATH).json()["profiles"]["fast"]["in_flight"] == 1
        policy = changed("fast: {na: 2}", "fast: {na: 5}").replace("default: full", "default: lean")
        assert reload(server, policy).status_code == 200
        last = [first, *map(read, (line for line in lines if line and not line.endswith("[DONE]")))][-1]
    assert last["output_ids"] == known["fast"]
    assert last["meta_info"]["moe_skip"] == {"profile": "fast", "mean_na": 2.0, "dynamic": False}

    answer = server.generate(ids, new_tokens=new_tokens)
    assert answer["output_ids"] == known["lean"]
    assert answer["meta_info"]["moe_skip"]["profile"] == "lean"


def test_an_auto_profile_is_redefined_while_it_runs(server: Server) -> None:
    """The old one has three levels, the new one two: each request goes on among its own."""
    ids = prompt(4)
    body = request_body(ids, "auto", new_tokens=300, stream=True)
    with server.client.stream("POST", "/generate", json=body) as stream:
        lines = stream.iter_lines()
        read(next(lines))
        policy = changed("levels: [full, fast, lean]", "levels: [fast, lean]").replace("hold_steps: 2", "hold_steps: 1")
        assert reload(server, policy).json()["redefined"] == ["auto"]
        assert len(server.tokens(prompt(5), "auto", new_tokens=40)) == 40
        last = [read(line) for line in lines if line and not line.endswith("[DONE]")][-1]
    assert last["meta_info"]["completion_tokens"] == 300
    assert server.is_well()


def test_a_bad_file_and_a_wrong_key_change_nothing(server: Server) -> None:
    before = server.client.get(PATH).json()
    refused = reload(server, changed("fast: {na: 2}", "fast: {na: two}"))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "profiles.fast.na"
    assert reload(server, changed("fast: {na: 2}", "fast: {na: 3}"), key="user").status_code == 401
    after = server.client.get(PATH).json()
    assert after["generation"] == before["generation"] and after["policy"] == before["policy"]


def test_what_it_says_is_what_was_sent(server: Server) -> None:
    def counts() -> dict[str, Any]:
        found: dict[str, Any] = server.client.get(PATH).json()["profiles"]["lean"]
        return found

    before = counts()
    for seed in range(3):
        server.tokens(prompt(10 + seed), "lean", new_tokens=9)
    assert counts()["requests"] == before["requests"] + 3

    def decoded() -> int:
        return (counts()["computed"] or {"tokens": {"decode": 0}})["tokens"]["decode"]

    then = (before["computed"] or {"tokens": {"decode": 0}})["tokens"]["decode"]
    assert eventually(lambda: decoded() == then + 3 * 8)  # a prompt gives the first token
    assert counts()["computed"]["mean_na"] == 1.0 and counts()["in_flight"] == 0


def read(line: str) -> dict[str, Any]:
    """An event of a stream."""
    event: dict[str, Any] = json.loads(line.removeprefix("data:"))
    return event
