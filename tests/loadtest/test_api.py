"""What is sent through each API, and what its events mean."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.api import APIS, Ask, Event

ASK = Ask([1, 2, 3], None, 8, {"na": 2})
TEXT = Ask(None, "hello", 8, None)


def test_the_hint_goes_where_the_server_looks_for_it() -> None:
    assert APIS["generate"].body(ASK, "m")["sampling_params"]["custom_params"] == {"moe_skip": {"na": 2}}
    assert APIS["completions"].body(ASK, "m")["custom_params"] == {"moe_skip": {"na": 2}}
    assert APIS["chat"].body(Ask(None, "hello", 8, "fast"), "m")["custom_params"] == {"moe_skip": "fast"}


@pytest.mark.parametrize("name", APIS)
def test_without_a_hint_nothing_of_ours_is_sent(name: str) -> None:
    assert "custom_params" not in str(APIS[name].body(TEXT, "m"))


@pytest.mark.parametrize("name", ["completions", "chat"])
def test_openai_requests_ask_for_usage_and_a_fixed_length(name: str) -> None:
    body = APIS[name].body(TEXT, "m")
    assert body["model"] == "m"
    assert body["max_tokens"] == 8
    assert body["ignore_eos"]
    assert body["stream"]
    assert body["stream_options"] == {"include_usage": True}


def test_prompts() -> None:
    assert APIS["generate"].body(ASK, "m")["input_ids"] == [1, 2, 3]
    assert APIS["generate"].body(TEXT, "m")["text"] == "hello"
    assert APIS["completions"].body(ASK, "m")["prompt"] == [1, 2, 3]
    assert APIS["chat"].body(TEXT, "m")["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("api", "event", "meaning"),
    [
        ("generate", {"output_ids": [5], "meta_info": {"prompt_tokens": 3, "completion_tokens": 1}}, Event(True, 3, 1)),
        ("generate", {"error": {"message": "out of\nmemory"}}, Event(False, error="out of memory")),
        ("completions", {"choices": [{"text": ""}]}, Event(True)),
        ("completions", {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 8}}, Event(False, 3, 8)),
        ("completions", {"object": "error", "message": "no"}, Event(False, error="no")),
        ("chat", {"choices": [{"delta": {"role": "assistant", "content": ""}}]}, Event(False)),
        ("chat", {"choices": [{"delta": {"content": "x"}}]}, Event(True)),
        ("chat", {"choices": [{"delta": {"content": None, "reasoning_content": "x"}}]}, Event(True)),
        ("chat", {"choices": [{"delta": {}, "finish_reason": "length"}]}, Event(False)),
    ],
)
def test_events(api: str, event: dict[str, Any], meaning: Event) -> None:
    assert APIS[api].read(event) == meaning


@pytest.mark.parametrize("name", APIS)
def test_other_events_are_refused(name: str) -> None:
    with pytest.raises((KeyError, TypeError)):
        APIS[name].read({"something": "else"})
