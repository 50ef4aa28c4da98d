"""Hints at the HTTP endpoints, on SGLang's own request objects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_moe_opt.engine.http import resolver as resolver_module
from sglang_moe_opt.engine.http import scope as scope_module
from sglang_moe_opt.engine.http.admission import handle_openai_request, serve_generate_request
from sglang_moe_opt.engine.http.resolver import Resolver
from sglang_moe_opt.engine.http.scope import RequestScope
from sglang_moe_opt.engine.request import WIRE_KEY
from tests.engine.stand_ins import POLICY, SHAPE, hint

io_struct = pytest.importorskip("sglang.srt.managers.io_struct")
protocol = pytest.importorskip("sglang.srt.entrypoints.openai.protocol")
serving_base = pytest.importorskip("sglang.srt.entrypoints.openai.serving_base")
pytestmark = pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")

SERVING = SimpleNamespace(
    create_error_response=partial(serving_base.OpenAIServingBase.create_error_response, SimpleNamespace())
)


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver.create(POLICY, SHAPE)
    monkeypatch.setattr(resolver_module, "_resolver", resolver)
    return resolver


@pytest.fixture
def scope() -> Iterator[RequestScope]:
    """The HTTP request under way."""
    scope = RequestScope(header=None)
    token = scope_module.current.set(scope)
    yield scope
    scope_module.current.reset(token)


def generate(sampling_params: Any, **more: Any) -> Any:
    """What SGLang is handed, or the response that it never saw."""

    async def original(obj: Any, request: Any) -> Any:
        return obj.sampling_params

    obj = io_struct.GenerateReqInput(text="hello", sampling_params=sampling_params, **more)
    return asyncio.run(serve_generate_request(original, obj, SimpleNamespace()))


def openai(cls: Any = None, **fields: Any) -> Any:
    async def original(serving: Any, request: Any, raw_request: Any) -> Any:
        return request

    request = (cls or protocol.CompletionRequest)(model="m", **({"prompt": "hello"} | fields))
    return asyncio.run(handle_openai_request(original, SERVING, request, SimpleNamespace()))


def wire(value: object) -> dict[str, str]:
    return {WIRE_KEY: hint(value).to_wire()}


# --- /generate ---


def test_generate_resolves_a_hint() -> None:
    params = {"max_new_tokens": 3, "custom_params": {"moe_skip": {"na": 2}, "other": 1}}
    assert generate(params) == {"max_new_tokens": 3, "custom_params": {**wire({"na": 2}), "other": 1}}
    assert params["custom_params"] == {"moe_skip": {"na": 2}, "other": 1}


def test_generate_without_a_hint_is_left_alone() -> None:
    for params in ({"max_new_tokens": 3}, {"custom_params": {"other": 1}}, {}):
        assert generate(params) is params
    assert not generate(None)


def test_generate_takes_one_hint_per_prompt() -> None:
    first, second = generate([{"custom_params": {"moe_skip": "fast"}}, {"max_new_tokens": 1}])
    assert first["custom_params"] == wire("fast")
    assert second == {"max_new_tokens": 1}


def test_generate_answers_a_bad_hint(scope: RequestScope) -> None:
    response = generate({"custom_params": {"moe_skip": {"na": -1}}})
    assert response.status_code == 400
    error = json.loads(response.body)["error"]
    assert error["param"] == "custom_params.moe_skip.na" and error["code"] == 400
    assert "got -1" in error["message"]


def test_one_schedule_too_many_is_answered_with_429(scope: RequestScope, resolver: Resolver) -> None:
    params = [{"custom_params": {"moe_skip": {"na": na}}} for na in (1, 2, 3)]
    response = generate(params)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert len(resolver.live) == 2  # held by the request until its response is out
    scope.release()
    assert len(resolver.live) == 0


def test_the_request_remembers_what_was_admitted(scope: RequestScope) -> None:
    generate([{"custom_params": {"moe_skip": "fast"}}, {}])
    assert list(scope.hints) == ["fast", "full"]


# --- /v1 ---


def test_v1_resolves_a_hint(scope: RequestScope, resolver: Resolver) -> None:
    request = openai(custom_params={"moe_skip": {"na": 2}, "other": 1})
    assert request.custom_params == {**wire({"na": 2}), "other": 1}
    assert len(resolver.live) == 1


def test_chat_takes_the_header(scope: RequestScope) -> None:
    scope.header = "fast"
    messages = [{"role": "user", "content": "hello"}]
    assert openai(protocol.ChatCompletionRequest, messages=messages).custom_params == wire("fast")


def test_v1_answers_a_bad_hint_like_upstream_answers_bad_fields(scope: RequestScope) -> None:
    response = openai(custom_params={"moe_skip": "slow"})
    assert response.status_code == 400
    error = json.loads(response.body)
    assert error["object"] == "error" and error["param"] == "custom_params.moe_skip"
    assert "got 'slow'" in error["message"]
    assert "retry-after" not in response.headers


def test_v1_answers_429_with_when_to_retry(scope: RequestScope) -> None:
    for na in (1, 2):
        openai(custom_params={"moe_skip": {"na": na}})
    response = openai(custom_params={"moe_skip": {"na": 3}})
    assert response.status_code == 429 and response.headers["retry-after"] == "1"


def test_the_internal_key_is_refused() -> None:
    assert openai(custom_params=wire({"na": 0})).status_code == 400
    assert generate({"custom_params": wire({"na": 0})}).status_code == 400


# --- sessions ---


@pytest.mark.parametrize("header", [None, "fast"])
def test_a_session_takes_no_hint(scope: RequestScope, header: str | None) -> None:
    """Neither in the body nor in the header: its earlier turns are cached under the schedule that they had."""
    scope.header = header
    custom_params = None if header else {"moe_skip": "fast"}
    session = {"id": "1"}
    for response in (
        openai(custom_params=custom_params, session_params=session),
        generate({"custom_params": custom_params}, session_params=session),
    ):
        assert response.status_code == 400
        assert b"session_params" in response.body


def test_a_session_without_a_hint_runs() -> None:
    assert openai(session_params={"id": "1"}).custom_params is None
    assert generate({}, session_params={"id": "1"}) == {}


# --- switched off ---


def test_without_a_resolver_everything_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "_resolver", None)
    params = {"custom_params": {"moe_skip": "no such profile"}}
    assert generate(params) is params
    assert openai(**params).custom_params == params["custom_params"]


def test_requests_without_custom_params_pass() -> None:
    async def original(serving: Any, request: Any, raw_request: Any) -> Any:
        return request

    request = SimpleNamespace(model="m")
    assert asyncio.run(handle_openai_request(original, SERVING, request, None)) is request
