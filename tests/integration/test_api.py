"""Every way a client can give a hint, and every place where the server says what it did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from reference import prompt
from server import Server, eventually, needs_text, request_body

pytestmark = pytest.mark.server

IDS = prompt("random-v2", 20, seed=10)
NEW_TOKENS = 12
HINTS: list[tuple[object, str, str]] = [
    (None, "full", "6"),
    ("full", "full", "6"),
    ("fast", "fast", "2"),
    ("adaptive", "adaptive", "6"),
    ("thrifty", "thrifty", "6/1"),
    ("auto", "auto", "6"),
    ({"profile": "lean"}, "lean", "1"),
    ({"na": 3}, "custom", "3"),
    ({"schedule": [6, 2, 1, 3]}, "custom", "3"),
    ({"layers": [1, 2, 3, 4, 6]}, "custom", "3.2"),
    ({"prefill": "fast", "decode": {"na": 1}}, "custom", "2/1"),
]


def events(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    """Objects of a server-sent event stream."""
    for line in reply.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def completion_body(hint: object, **body: Any) -> dict[str, Any]:
    custom = {} if hint is None else {"custom_params": {"moe_skip": hint}}
    return {"model": "m", "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, **custom, **body}


def chat_body(hint: object, **body: Any) -> dict[str, Any]:
    return completion_body(hint, messages=[{"role": "user", "content": "Where is the river?"}], **body)


@pytest.mark.parametrize(("hint", "profile", "mean_na"), HINTS, ids=lambda value: json.dumps(value)[:40])
def test_generate_reports_the_schedule(v2: Server, hint: object, profile: str, mean_na: str) -> None:
    """In the headers and in meta_info, for one answer and for a stream of it."""
    reply = v2.client.post("/generate", json=request_body(IDS, hint, new_tokens=NEW_TOKENS))
    assert reply.status_code == 200
    assert (reply.headers["x-moe-skip"], reply.headers["x-moe-skip-mean-na"]) == (profile, mean_na)
    info = reply.json()["meta_info"]["moe_skip"]
    assert info["profile"] == profile
    means = info["mean_na"].values() if isinstance(info["mean_na"], dict) else [info["mean_na"]]
    assert "/".join(f"{mean:g}" for mean in means) == mean_na
    assert info["dynamic"] == (profile in ("adaptive", "auto"))

    with v2.client.stream("POST", "/generate", json=request_body(IDS, hint, new_tokens=NEW_TOKENS, stream=True)) as got:
        assert (got.headers["x-moe-skip"], got.headers["x-moe-skip-mean-na"]) == (profile, mean_na)
        parts = list(events(got))
    assert all(part["meta_info"]["moe_skip"] == info for part in parts)
    assert parts[-1].get("text") == reply.json().get("text")


def test_generate_takes_a_hint_for_each_prompt_of_a_batch(v2: Server) -> None:
    hints: list[object] = ["full", "fast", {"na": 1}, None]
    alone = [v2.tokens(IDS, hint, new_tokens=NEW_TOKENS) for hint in hints]
    assert len({tuple(tokens) for tokens in alone}) == 3
    v2.flush_cache()
    params = [request_body(IDS, hint, new_tokens=NEW_TOKENS)["sampling_params"] for hint in hints]
    reply = v2.client.post("/generate", json={"input_ids": [IDS] * len(hints), "sampling_params": params})
    assert reply.status_code == 200, reply.text
    assert [answer["output_ids"] for answer in reply.json()] == alone
    profiles = [answer["meta_info"]["moe_skip"]["profile"] for answer in reply.json()]
    assert profiles == ["full", "fast", "custom", "full"]
    assert reply.headers["x-moe-skip"] == "full,fast,custom"
    assert reply.headers["x-moe-skip-mean-na"] == "6,2,1"


def test_generate_takes_one_hint_for_a_whole_batch(v2: Server) -> None:
    alone = v2.tokens(IDS, "fast", new_tokens=NEW_TOKENS)
    params = request_body(IDS, "fast", new_tokens=NEW_TOKENS)["sampling_params"]
    answers = v2.client.post("/generate", json={"input_ids": [IDS, IDS], "sampling_params": params}).json()
    assert [answer["output_ids"] for answer in answers] == [alone, alone]


def test_one_bad_hint_refuses_the_whole_batch(v2: Server) -> None:
    params = [request_body(IDS, hint)["sampling_params"] for hint in ("fast", "nonsense")]
    reply = v2.client.post("/generate", json={"input_ids": [IDS, IDS], "sampling_params": params})
    assert reply.status_code == 400
    assert "nonsense" in reply.text


@pytest.mark.parametrize("hint", [None, "fast", {"na": 1}, "thrifty"])
def test_completions(v2: Server, hint: object) -> None:
    """Token ids and text as prompts, streamed or not: the text that /generate gives under the same schedule."""
    needs_text(v2)
    answer = v2.generate(IDS, hint, new_tokens=NEW_TOKENS)
    profile = answer["meta_info"]["moe_skip"]["profile"]
    reply = v2.client.post("/v1/completions", json=completion_body(hint, prompt=IDS))
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["text"] == answer["text"]
    assert reply.headers["x-moe-skip"] == profile
    with v2.client.stream("POST", "/v1/completions", json=completion_body(hint, prompt=IDS, stream=True)) as got:
        assert got.headers["x-moe-skip"] == profile
        assert "".join(part["choices"][0]["text"] for part in events(got)) == answer["text"]


def test_completions_of_several_prompts(v2: Server) -> None:
    needs_text(v2)
    prompts = [IDS, prompt("random-v2", 7, seed=11)]
    expected = [v2.generate(ids, "fast", new_tokens=NEW_TOKENS)["text"] for ids in prompts]
    choices = v2.client.post("/v1/completions", json=completion_body("fast", prompt=prompts)).json()["choices"]
    assert [choice["text"] for choice in choices] == expected


@pytest.mark.parametrize("hint", [None, "fast", {"na": 1}])
def test_chat_completions(v2: Server, hint: object) -> None:
    needs_text(v2)
    reply = v2.client.post("/v1/chat/completions", json=chat_body(hint))
    assert reply.status_code == 200, reply.text
    text = reply.json()["choices"][0]["message"]["content"]
    assert text
    profile = {None: "full", "fast": "fast"}.get(hint if isinstance(hint, str) else None, "full")
    profile = profile if not isinstance(hint, dict) else "custom"
    assert reply.headers["x-moe-skip"] == profile
    with v2.client.stream("POST", "/v1/chat/completions", json=chat_body(hint, stream=True)) as got:
        assert got.headers["x-moe-skip"] == profile
        assert "".join(part["choices"][0]["delta"].get("content") or "" for part in events(got)) == text


def test_chat_schedules_differ(v2: Server) -> None:
    needs_text(v2)
    texts = [
        v2.client.post("/v1/chat/completions", json=chat_body(hint)).json()["choices"][0]["message"]["content"]
        for hint in ("full", "fast", {"na": 1})
    ]
    assert len(set(texts)) == 3


def test_openai_client(v2: Server) -> None:
    """The official client, with the hint as ``extra_body`` and as a header; an error is its BadRequestError."""
    openai = pytest.importorskip("openai")
    needs_text(v2)
    expected = v2.client.post("/v1/chat/completions", json=chat_body("fast")).json()["choices"][0]["message"]["content"]
    with openai.OpenAI(base_url=f"{v2.url}/v1", api_key="none", max_retries=0) as client:

        def ask(**options: Any) -> Any:
            body = chat_body(None)
            extra = {"ignore_eos": True, **options.pop("extra_body", {})}
            return client.chat.completions.with_raw_response.create(
                model="m",
                messages=body["messages"],
                max_tokens=NEW_TOKENS,
                temperature=0,
                extra_body=extra,
                **options,
            )

        for options in (
            {"extra_body": {"custom_params": {"moe_skip": "fast"}}},
            {"extra_headers": {"x-moe-skip": "fast"}},
        ):
            reply = ask(**options)
            assert reply.headers["x-moe-skip"] == "fast"
            assert reply.parse().choices[0].message.content == expected
        with pytest.raises(openai.BadRequestError, match=r"custom_params\.moe_skip.*'fest'"):
            ask(extra_body={"custom_params": {"moe_skip": "fest"}})


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_header(v2: Server, path: str) -> None:
    """The header names a profile; a hint in the body wins over it."""
    needs_text(v2)

    def ask(hint: object) -> httpx.Response:
        body = {
            "/generate": request_body(IDS, hint, new_tokens=2),
            "/v1/completions": completion_body(hint, prompt=IDS),
            "/v1/chat/completions": chat_body(hint),
        }[path]
        return v2.client.post(path, json=body, headers={"X-MoE-Skip": "lean"})

    by_header, by_body = ask(None), ask("fast")
    assert (by_header.status_code, by_body.status_code) == (200, 200)
    assert (by_header.headers["x-moe-skip"], by_header.headers["x-moe-skip-mean-na"]) == ("lean", "1")
    assert (by_body.headers["x-moe-skip"], by_body.headers["x-moe-skip-mean-na"]) == ("fast", "2")


def test_header_gives_the_same_tokens_as_the_body(v2: Server) -> None:
    by_body = v2.tokens(IDS, "lean", new_tokens=NEW_TOKENS)
    v2.flush_cache()
    body = request_body(IDS, new_tokens=NEW_TOKENS)
    by_header = v2.client.post("/generate", json=body, headers={"x-moe-skip": "lean"}).json()["output_ids"]
    assert by_header == by_body != v2.tokens(IDS, new_tokens=NEW_TOKENS)


def test_other_custom_params_still_arrive(v2: Server) -> None:
    """Ours is one key among a user's own; theirs stay theirs."""
    params = {"custom_params": {"mine": [1, {"a": 2}], "moe_skip": "fast"}}
    answer = v2.generate(IDS, new_tokens=NEW_TOKENS, params=params)
    assert answer["output_ids"] == v2.tokens(IDS, "fast", new_tokens=NEW_TOKENS)


def test_health_and_models(v2: Server) -> None:
    assert v2.client.get("/health").status_code == 200
    models = v2.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == [str(v2.model)]


@pytest.mark.parametrize(
    ("hint", "label", "prefill", "decode"),
    [
        (None, "full", 6, 6),
        ("fast", "fast", 2, 2),
        ({"layers": [1, 2, 3, 4, 6]}, "custom", 3.2, 3.2),
    ],
    ids=["full", "fast", "custom"],
)
def test_counters_of_tokens_and_slots(v2: Server, hint: object, label: str, prefill: float, decode: float) -> None:
    """20 prompt tokens and 12 new ones, of which the first comes from the prompt's pass: 31 tokens are computed."""
    shape = v2.shape
    layers, computed = len(shape.moe_layer_ids), len(IDS) + NEW_TOKENS - 1
    expected = {
        ("sglang_moe_opt_requests_total", ""): 1.0,
        ("sglang_moe_opt_tokens_total", "prefill"): len(IDS),
        ("sglang_moe_opt_tokens_total", "decode"): NEW_TOKENS - 1,
        ("sglang_moe_opt_slots_offered_total", ""): computed * layers * shape.top_k,
        ("sglang_moe_opt_slots_kept_total", ""): layers * (prefill * len(IDS) + decode * (NEW_TOKENS - 1)),
    }

    def read() -> dict[tuple[str, str], float]:
        return {
            (name, phase): v2.metric(name, profile=label, **({"phase": phase} if phase else {}))
            for name, phase in expected
        }

    before = read()
    v2.generate(IDS, hint, new_tokens=NEW_TOKENS)
    kept = ("sglang_moe_opt_slots_kept_total", "")
    eventually(lambda: read()[kept] - before[kept] >= expected[kept] - 0.5)
    after = read()
    assert {key: after[key] - before[key] for key in expected} == pytest.approx(expected)


def test_a_split_schedule_counts_each_phase(v2: Server) -> None:
    """`thrifty` keeps all slots of the prompt, which count as `full`'s, and one per layer of the answer."""
    kept = "sglang_moe_opt_slots_kept_total"
    before = {label: v2.metric(kept, profile=label) for label in ("full", "thrifty")}
    v2.generate(IDS, "thrifty", new_tokens=NEW_TOKENS)

    def grown(label: str) -> float:
        return v2.metric(kept, profile=label) - before[label]

    layers = len(v2.shape.moe_layer_ids)
    eventually(lambda: grown("thrifty") >= layers * (NEW_TOKENS - 1))
    assert grown("thrifty") == layers * (NEW_TOKENS - 1)
    assert grown("full") == layers * v2.shape.top_k * len(IDS)


def test_refused_requests_are_counted(v2: Server) -> None:
    name = "sglang_moe_opt_refused_requests_total"
    before = v2.metric(name, status="400")
    v2.client.post("/generate", json=request_body(IDS, "nonsense"))
    assert v2.metric(name, status="400") == before + 1


def test_distinct_experts_stay_within_the_schedule(v2: Server) -> None:
    """A lone request with one expert per layer touches one expert per layer in each decode step."""
    name = "sglang_moe_opt_unique_experts"
    before = [v2.metric(f"{name}_{part}", phase="decode") for part in ("sum", "count")]
    v2.generate(IDS, "lean", new_tokens=80)
    total, count = (
        v2.metric(f"{name}_{part}", phase="decode") - old for part, old in zip(("sum", "count"), before, strict=True)
    )
    assert count >= 9 * len(v2.shape.moe_layer_ids)
    assert total == count


def test_live_schedules_return_to_zero(v2: Server) -> None:
    """Custom schedules count while they are in flight, two requests with one schedule once, profiles not at all."""
    name = "sglang_moe_opt_live_schedules"
    assert eventually(lambda: v2.metric(name) == 0), "requests of an earlier test are still counted"

    def opened(hint: object) -> Any:
        return v2.client.stream("POST", "/generate", json=request_body(IDS, hint, new_tokens=1000, stream=True))

    with opened({"na": 3}), opened({"na": 3}), opened({"na": 5}), opened("fast"):
        assert v2.metric(name) == 2
    assert eventually(lambda: v2.metric(name) == 0)
