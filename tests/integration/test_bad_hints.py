"""Whatever a client sends as a hint: a clear refusal or a normal answer, and the server lives."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from server import Server, eventually, request_body

from sglang_moe_opt.hints import HintError, resolve

pytestmark = pytest.mark.server

RULES = (
    "profile",
    "na",
    "schedule",
    "layers",
    "min_ratio",
    "min_weight",
    "top_p",
    "min_na",
    "rescale",
    "prefill",
    "decode",
)
BATCHES = 100
PER_BATCH = 20

numbers = st.one_of(
    st.integers(-3, 12), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([2.0, 1e300])
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=40), st.sampled_from(["full", "fast", "FAST", ""])
)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
rule_values = st.one_of(junk, st.lists(st.integers(-1, 9), max_size=8), numbers)
hints = st.one_of(
    junk,
    st.dictionaries(st.sampled_from(RULES), rule_values, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from([*RULES, "unknown"]), rule_values, max_size=4),
    st.builds(lambda a, b: {"prefill": a, "decode": b}, junk, st.dictionaries(st.sampled_from(RULES), rule_values)),
)


def post(server: Server, hint: Any, **body: Any) -> httpx.Response:
    sampling = {"max_new_tokens": 1, "temperature": 0, "custom_params": {"moe_skip": hint}}
    return server.client.post("/generate", json={"input_ids": [11, 12, 13], "sampling_params": sampling, **body})


@pytest.fixture(scope="module")
def pool() -> Any:
    with ThreadPoolExecutor(PER_BATCH) as executor:
        yield executor


def test_two_thousand_hints(v2: Server, pool: ThreadPoolExecutor) -> None:
    seen: dict[int, int] = {}
    policy, shape = v2.policy, v2.shape

    @settings(
        max_examples=BATCHES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(hints, min_size=PER_BATCH, max_size=PER_BATCH))
    def check(batch: list[Any]) -> None:
        for hint, response in zip(batch, pool.map(lambda h: post(v2, h), batch), strict=True):
            try:
                resolve(hint, policy, shape)
                status = 200
            except HintError as error:
                status = error.status
            assert response.status_code == status, (hint, response.text)
            seen[status] = seen.get(status, 0) + 1
            if status != 200:
                error = response.json()["error"]
                assert "moe_skip" in error["message"]
                assert error["param"].startswith("custom_params.moe_skip")

    check()
    assert sum(seen.values()) >= 2000
    assert min(seen.get(200, 0), seen.get(400, 0)) > 50, seen
    assert v2.is_well()


@pytest.mark.parametrize(
    "hint",
    [
        [1] * 10**6,
        {"layers": [1] * 10**6},
        {"layers": ["x"] * 10**5},
        {"na": 2**62},
        {"schedule": [10**9] * 4},
        "x" * 10**6,
        {"unknown " + "y" * 10**5: 1},
        {"prefill": {"prefill": {"prefill": "full"}}},
        json.loads("[" * 200 + "]" * 200),
        {"min_ratio": -0.0001},
        {"min_weight": [0.1, 0.2]},
        {"top_p": 0},
        {"na": 2, "top_p": 0.5},
        {"na": True},
        {"na": 0},
        {"min_ratio": 0.2, "rescale": 1e9},
    ],
    ids=lambda hint: str(hint)[:24],
)
def test_extreme_hints_name_the_field_in_a_short_message(v2: Server, hint: Any) -> None:
    response = post(v2, hint)

    assert response.status_code == 400
    assert "moe_skip" in response.json()["error"]["message"]
    assert len(response.text) < 1000
    assert v2.is_well()


@pytest.mark.parametrize(
    "body",
    [
        '{"input_ids": [11], "sampling_params": {"custom_params": {"moe_skip": {"min_ratio": NaN}}}}',
        '{"input_ids": [11], "sampling_params": {"custom_params": {"moe_skip": {"top_p": Infinity}}}}',
        '{"input_ids": [11], "sampling_params": {"custom_params": {"moe_skip": {"na": 1' + "0" * 400 + "}}}}",
        '{"input_ids": [11], "sampling_params": {"custom_params": {"moe_skip": ' + "[" * 10000 + "]" * 10000 + "}}}",
        '{"input_ids": [11], "sampling_params": {"custom_params": {"moe_skip": "fast"',
        '{"input_ids": [11], "sampling_params": {"max_new_tokens": 1, "custom_params": {"__moe_skip_resolved": "{}"}}}',
        '{"input_ids": [11], "sampling_params": {"max_new_tokens": 1, "custom_params": {"__moe_skip_resolved": 3}}}',
    ],
    ids=["nan", "infinity", "401 digits", "deep", "cut", "internal key", "internal key, number"],
)
def test_bodies_that_no_client_library_sends(v2: Server, body: str) -> None:
    response = v2.client.post("/generate", content=body, headers={"content-type": "application/json"})

    assert response.status_code == 400
    assert v2.is_well()


@pytest.mark.parametrize(
    "custom_params", [[], "fast", 5, [{"moe_skip": "fast"}], {"moe_skip": None}, {"other": [1, {}]}]
)
def test_custom_params_of_other_kinds_leave_the_server_alive(v2: Server, custom_params: Any) -> None:
    sampling = {"max_new_tokens": 1, "custom_params": custom_params}
    response = v2.client.post("/generate", json={"input_ids": [11], "sampling_params": sampling})

    assert response.status_code in (200, 400)
    assert v2.is_well()


@pytest.mark.parametrize("value", ["nope", "", "full,fast", "{}", "\x80", "x" * 4000])
def test_bad_headers(v2: Server, value: str) -> None:
    response = v2.client.post(
        "/generate",
        json={"input_ids": [11], "sampling_params": {"max_new_tokens": 1}},
        headers={"x-moe-skip": value.encode("latin-1")},
    )

    assert response.status_code == 400
    assert "x-moe-skip" in response.json()["error"]["message"]


BAD = {"custom_params": {"moe_skip": {"na": "x"}}}
ENDPOINTS = [
    ("/generate", {"input_ids": [11], "stream": True, "sampling_params": BAD}),
    ("/v1/completions", {"model": "m", "prompt": [11, 12], **BAD}),
    ("/v1/completions", {"model": "m", "prompt": [11, 12], "stream": True, **BAD}),
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, **BAD}),
]


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
def test_every_endpoint_refuses_before_the_answer_begins(v2: Server, path: str, body: dict[str, Any]) -> None:
    response = v2.client.post(path, json=body)

    assert response.status_code == 400
    assert "custom_params.moe_skip.na" in response.text


def test_the_65th_schedule_at_a_time_is_refused_for_now(v2: Server) -> None:
    top_k, layers = v2.shape.top_k, len(v2.shape.moe_layer_ids)
    distinct = [{"layers": [1 + (i // (top_k - 1) ** j) % (top_k - 1) for j in range(layers)]} for i in range(65)]
    started, release = threading.Semaphore(0), threading.Event()

    def hold(hint: Any) -> None:
        body = request_body([11, 12], hint, new_tokens=1500, stream=True)
        with v2.client.stream("POST", "/generate", json=body) as response:
            assert response.status_code == 200
            started.release()
            release.wait(240)

    with ThreadPoolExecutor(64) as pool:
        held = [pool.submit(hold, hint) for hint in distinct[:64]]
        try:
            for _ in held:
                assert started.acquire(timeout=120)
            assert v2.metric("sglang_moe_opt_live_schedules") == 64
            refused = post(v2, distinct[64])
            known = post(v2, distinct[0])
            named = post(v2, "fast")
        finally:
            release.set()
        for future in held:
            future.result()

    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "max_live_schedules" in refused.json()["error"]["message"]
    assert known.status_code == named.status_code == 200
    assert eventually(lambda: post(v2, distinct[64]).status_code != 429)
    assert v2.is_well()
