"""The streaming server without an engine: it keeps its times and goes wrong as asked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest

from loadtest.sse_server import Fault, Schedule, Served, sse_server
from sglang_moe_opt.fields import FieldError

pytestmark = pytest.mark.timed  # on a busy machine times mean nothing

SCHEDULE = Schedule(ttft_ms=(30.0, 60.0), gap_ms=(10.0, 20.0, 5.0))
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 6}},
    "/v1/completions": {"prompt": "a b c", "max_tokens": 6, "stream_options": {"include_usage": True}},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "a b c"}],
        "max_tokens": 6,
        "stream_options": {"include_usage": True},
    },
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with sse_server(SCHEDULE) as running:
        yield running


def events(url: str, path: str, body: dict[str, Any]) -> list[tuple[float, Any]]:
    """Time and content of every event."""
    found = []
    start = time.monotonic()
    with httpx.stream("POST", url + path, json=body | {"stream": True}, timeout=10) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line:
                data = line.removeprefix("data: ")
                found.append((time.monotonic() - start, data if data == "[DONE]" else json.loads(data)))
    return found


def test_arrivals_follow_from_the_schedule() -> None:
    assert SCHEDULE.arrivals(0, 4) == [30, 50, 55, 65]
    assert SCHEDULE.arrivals(1, 4) == [60, 65, 75, 95]


@pytest.mark.parametrize("path", BODIES)
def test_every_api_streams_its_tokens(served: Served, path: str) -> None:
    found = [content for _, content in events(served.url, path, BODIES[path])]
    assert found[-1] == "[DONE]"
    if path == "/generate":
        assert [e["meta_info"]["completion_tokens"] for e in found[:-1]] == [1, 2, 3, 4, 5, 6]
        assert found[-2]["meta_info"]["prompt_tokens"] == 3
    else:
        assert found[-2] == {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}}
        text = [e["choices"][0].get("text") or e["choices"][0].get("delta", {}).get("content") for e in found[:-2]]
        assert [part for part in text if part] == ["a"] * 6


@pytest.mark.parametrize("path", BODIES)
def test_without_streaming_the_answer_comes_whole(served: Served, path: str) -> None:
    answer = httpx.post(served.url + path, json=BODIES[path], timeout=10).json()
    assert "aaaaaa" in json.dumps(answer)


def test_what_it_says_of_itself(served: Served) -> None:
    assert httpx.get(served.url + "/health").status_code == 200
    assert httpx.get(served.url + "/nowhere").status_code == 404
    assert httpx.post(served.url + "/generate", json={"input_ids": [1]}).status_code == 400
    assert httpx.get(served.url + "/v1/loads").json()["loads"][0]["num_waiting_reqs"] == 0


def test_tokens_come_at_their_times() -> None:
    with sse_server(Schedule((80.0,), (40.0,))) as served:
        times = [at for at, _ in events(served.url, "/v1/completions", BODIES["/v1/completions"])][:6]
    gaps = [b - a for a, b in pairwise(times)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.04, abs=0.004)


def test_further_requests_wait() -> None:
    with sse_server(Schedule((100.0,), (50.0,)), max_running=1) as served, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(events, served.url, "/generate", BODIES["/generate"]) for _ in range(2)]
        time.sleep(0.1)
        load = httpx.get(served.url + "/v1/loads").json()["loads"][0]
        ends = sorted(one.result()[-1][0] for one in both)
    assert load == {"num_running_reqs": 1, "num_waiting_reqs": 1}
    assert ends[1] > 1.7 * ends[0]


@pytest.mark.parametrize("kind", ["http500", "broken", "cut", "error_event", "stall"])
def test_faults_hit_every_nth(kind: str) -> None:
    with sse_server(Schedule((1.0,), (1.0,)), [Fault(kind, 2)]) as served:
        assert events(served.url, "/generate", BODIES["/generate"])[-1][1] == "[DONE]"
        if kind == "error_event":
            found = events(served.url, "/generate", BODIES["/generate"])
            assert "out of order" in json.dumps(found[-2][1])
        else:
            with (
                pytest.raises((httpx.HTTPError, ValueError)),
                httpx.stream(
                    "POST", served.url + "/generate", json=BODIES["/generate"] | {"stream": True}, timeout=0.5
                ) as response,
            ):
                response.raise_for_status()
                for line in response.iter_lines():
                    if line and line != "data: [DONE]":
                        json.loads(line.removeprefix("data: "))
        assert events(served.url, "/generate", BODIES["/generate"])[-1][1] == "[DONE]"


@pytest.mark.parametrize("text", ["", "http500", "http500:0", "slow:x", "other:3"])
def test_other_faults_are_refused(text: str) -> None:
    with pytest.raises(FieldError, match="--fault: got"):
        Fault.parse(text)


@pytest.mark.parametrize("tokens", [0, -1, "6", None])
@pytest.mark.parametrize("streams", [True, False])
def test_a_stream_without_tokens_is_refused(served: Served, tokens: object, streams: bool) -> None:
    body = {"prompt": "a", "max_tokens": tokens, "stream": streams}
    answer = httpx.post(served.url + "/v1/completions", json=body)
    assert answer.status_code == 400
    assert "max_tokens: got" in answer.json()["error"]["message"]
    assert httpx.get(served.url + "/health").status_code == 200


def test_who_leaves_the_queue_does_not_wait_any_more() -> None:
    with sse_server(Schedule((600.0,), (1.0,)), max_running=1) as served, ThreadPoolExecutor(1) as pool:
        running = pool.submit(events, served.url, "/generate", BODIES["/generate"])
        time.sleep(0.1)
        with pytest.raises(httpx.TimeoutException):
            httpx.post(served.url + "/generate", json=BODIES["/generate"], timeout=0.1)
        time.sleep(0.1)
        load = httpx.get(served.url + "/v1/loads").json()["loads"][0]
        assert running.result()[-1][1] == "[DONE]"
    assert load == {"num_running_reqs": 1, "num_waiting_reqs": 0}


def test_slow_requests_have_gaps_ten_times_as_long() -> None:
    with sse_server(Schedule((10.0,), (4.0,)), [Fault("slow", 2)]) as served:
        ends = [events(served.url, "/generate", BODIES["/generate"])[-1][0] for _ in range(2)]
        assert httpx.get(served.url + "/sent").json()["requests"] == 2
    assert ends[1] - ends[0] == pytest.approx(5 * 0.036, abs=0.04)
