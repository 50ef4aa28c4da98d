"""The tokenizer manager's side of a hint."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_moe_opt.engine.http import resolver as resolver_module
from sglang_moe_opt.engine.http import tokenizer
from sglang_moe_opt.engine.http.resolver import Resolver, get_resolver
from sglang_moe_opt.engine.http.tokenizer import describe
from sglang_moe_opt.engine.request import WIRE_KEY
from sglang_moe_opt.engine.settings import CONFIG_ENV
from sglang_moe_opt.hints import HintError, ResolvedHint
from sglang_moe_opt.policy import PolicyError
from sglang_moe_opt.shapes import ShapeSpec
from tests.engine.stand_ins import POLICY, SHAPE, hint

io_struct = pytest.importorskip("sglang.srt.managers.io_struct")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver.create(POLICY, SHAPE)
    monkeypatch.setattr(resolver_module, "_resolver", resolver)
    yield resolver


# --- admit ---


def test_without_a_hint_nothing_changes(resolver: Resolver) -> None:
    for params in (None, {}, {"thinking_budget": 3}, "text", [1]):
        admitted, applied = resolver.admit(params)
        assert admitted is params
        assert applied is resolver.default


@pytest.mark.parametrize("value", ["fast", {"profile": "fast"}, {"na": 3}, {"decode": {"na": 1}}, "full"])
def test_a_hint_goes_to_the_scheduler_resolved(resolver: Resolver, value: object) -> None:
    params = {"moe_skip": value, "thinking_budget": 3}
    admitted, applied = resolver.admit(params)
    assert applied == hint(value)
    assert admitted == {"thinking_budget": 3, WIRE_KEY: hint(value).to_wire()}
    assert ResolvedHint.from_wire(admitted[WIRE_KEY], SHAPE) == applied
    assert params == {"moe_skip": value, "thinking_budget": 3}


def test_the_header_speaks_where_the_body_is_silent(resolver: Resolver) -> None:
    for params in (None, {}, {"moe_skip": None}, {"thinking_budget": 3}):
        admitted, applied = resolver.admit(params, header="fast")
        assert applied == hint("fast")
        assert admitted[WIRE_KEY] == hint("fast").to_wire()
    assert admitted["thinking_budget"] == 3


def test_the_body_wins_over_the_header(resolver: Resolver) -> None:
    assert resolver.admit({"moe_skip": {"na": 1}}, header="fast")[1] == hint({"na": 1})
    assert resolver.admit({"moe_skip": "full"}, header="no such profile")[1].is_full


def test_a_null_hint_is_the_default_and_does_not_reach_the_scheduler(resolver: Resolver) -> None:
    admitted, applied = resolver.admit({"moe_skip": None, "other": 1})
    assert applied is resolver.default
    assert "moe_skip" not in admitted and admitted["other"] == 1


@pytest.mark.parametrize("header", ["slow", "", '{"na": 2}', "\xff"])
def test_a_bad_header_is_named(resolver: Resolver, header: str) -> None:
    with pytest.raises(HintError, match="header x-moe-skip: got") as caught:
        resolver.admit(None, header)
    assert caught.value.status == 400


@pytest.mark.parametrize("value", ["slow", 3, [], {"na": -1}, {"speed": 1}])
def test_a_bad_hint_is_named(resolver: Resolver, value: object) -> None:
    with pytest.raises(HintError, match=r"custom_params\.moe_skip"):
        resolver.admit({"moe_skip": value})


@pytest.mark.parametrize("wire", [hint({"na": 0}).to_wire(), "", {}, 0, False])
def test_the_internal_key_cannot_be_sent(resolver: Resolver, wire: object) -> None:
    with pytest.raises(HintError, match=f"custom_params.{WIRE_KEY}: .*this key is internal, use moe_skip"):
        resolver.admit({WIRE_KEY: wire})
    with pytest.raises(HintError, match="internal"):
        resolver.admit({WIRE_KEY: wire, "moe_skip": "fast"}, header="fast")


def test_admitting_twice_changes_nothing(resolver: Resolver) -> None:
    once, applied = resolver.admit({"moe_skip": {"na": 1}})
    twice, again = resolver.admit(once, header="fast")
    assert twice is once and again is applied


def test_the_policy_is_checked_on_the_model() -> None:
    from sglang_moe_opt.policy import Policy

    with pytest.raises(PolicyError, match=r"profiles\.a\.layers"):
        Resolver.create(Policy.from_object({"profiles": {"a": {"layers": [1]}}}), SHAPE)


# --- the hooks ---


def manager() -> SimpleNamespace:
    config = ShapeSpec.parse("tiny-v3").config()
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(to_dict=lambda: config), hf_config=None)
    )


def test_the_manager_knows_policy_and_model_only_where_skipping_is_configured(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.tokenizer_manager_init(None, manager())
    assert get_resolver() is None
    monkeypatch.setenv(CONFIG_ENV, "builtin")
    tokenizer.tokenizer_manager_init(None, manager())
    made = get_resolver()
    assert made is not None
    assert made.shape.moe_layer_ids == (1, 2) and made.default.is_full


def tokenized(manager: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands for upstream's method: what goes to the scheduler."""
    params = io_struct.SamplingParams(**(obj.sampling_params or {}))
    return SimpleNamespace(sampling_params=params, arguments=(manager, *args, kwargs))


def test_hints_of_the_python_engine_are_resolved(resolver: Resolver) -> None:
    params = {"max_new_tokens": 1, "custom_params": {"moe_skip": "fast"}}
    obj = SimpleNamespace(sampling_params=params)
    made = tokenizer.create_tokenized_object(tokenized, "manager", obj, "text", input_ids=[1])
    assert made.arguments == ("manager", "text", {"input_ids": [1]})
    assert made.sampling_params.max_new_tokens == 1
    assert made.sampling_params.custom_params == {WIRE_KEY: hint("fast").to_wire()}
    assert resolver.admit(obj.sampling_params["custom_params"])[1] == hint("fast")  # for the answer's meta_info
    assert params["custom_params"] == {"moe_skip": "fast"}  # the caller's own object
    with pytest.raises(ValueError, match="moe_skip"):
        bad = SimpleNamespace(sampling_params={"custom_params": {"moe_skip": 3}})
        tokenizer.create_tokenized_object(tokenized, "manager", bad)


@pytest.mark.parametrize("transport", ["pickle", "msgpack"])
def test_the_scheduler_gets_plain_text_by_either_transport(resolver: Resolver, transport: str) -> None:
    value = {"prefill": {"na": 3}, "decode": {"min_ratio": 0.5}}
    obj = SimpleNamespace(sampling_params={"custom_params": {"moe_skip": value, "other": [1, 2]}})
    sent = tokenizer.create_tokenized_object(tokenized, "manager", obj).sampling_params
    if transport == "pickle":
        arrived = pickle.loads(pickle.dumps(sent))
    else:
        decoder = io_struct.msgspec.msgpack.Decoder(io_struct.SamplingParams, ext_hook=io_struct.ext_hook)
        arrived = decoder.decode(io_struct.msgpack_encode(sent))
    assert type(arrived.custom_params[WIRE_KEY]) is str
    assert ResolvedHint.from_wire(arrived.custom_params[WIRE_KEY], SHAPE) == hint(value)
    assert arrived.custom_params["other"] == [1, 2]


def test_requests_without_a_hint_pass_as_they_are(resolver: Resolver) -> None:
    for params in ({"max_new_tokens": 1}, {}, None):
        obj = SimpleNamespace(sampling_params=params)
        made = tokenizer.create_tokenized_object(tokenized, "manager", obj)
        assert made.sampling_params.custom_params is None
        assert obj.sampling_params is params


def test_nothing_is_resolved_where_skipping_is_not_configured() -> None:
    obj = SimpleNamespace(sampling_params={"custom_params": {"moe_skip": "no such profile"}})
    made = tokenizer.create_tokenized_object(tokenized, "manager", obj)
    assert made.sampling_params.custom_params == {"moe_skip": "no such profile"}


def answers(closed: list[bool]) -> Any:
    async def original(manager: Any, obj: Any, request: Any = None) -> AsyncIterator[dict]:
        try:
            for index in range(3):
                yield {"text": str(index), "meta_info": {"id": index}}
        finally:
            closed.append(True)

    return original


def collect(responses: AsyncIterator[dict], limit: int = 9) -> list[dict]:
    async def run() -> list[dict]:
        collected = []
        async for response in responses:
            collected.append(response)
            if len(collected) == limit:
                break
        await responses.aclose()  # type: ignore[attr-defined]
        return collected

    return asyncio.run(run())


def test_every_answer_says_how_it_was_computed(resolver: Resolver) -> None:
    obj = SimpleNamespace(sampling_params={"custom_params": resolver.admit({"moe_skip": "fast"})[0]})
    responses = collect(tokenizer.wait_one_response(answers([]), "manager", obj))
    assert [response["meta_info"]["id"] for response in responses] == [0, 1, 2]
    assert {tuple(response["meta_info"]["moe_skip"].items()) for response in responses} == {
        (("profile", "fast"), ("mean_na", 2.0), ("dynamic", False))
    }


def test_a_reader_that_stops_early_closes_the_response(resolver: Resolver) -> None:
    closed: list[bool] = []
    obj = SimpleNamespace(sampling_params={})
    assert len(collect(tokenizer.wait_one_response(answers(closed), "manager", obj), limit=1)) == 1
    assert closed == [True]


def test_answers_are_untouched_where_there_is_no_schedule(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = SimpleNamespace(sampling_params=None)
    assert "moe_skip" not in collect(tokenizer.wait_one_response(answers([]), "manager", embedding))[0]["meta_info"]
    monkeypatch.setattr(resolver_module, "_resolver", None)
    plain = SimpleNamespace(sampling_params={})
    assert "moe_skip" not in collect(tokenizer.wait_one_response(answers([]), "manager", plain))[0]["meta_info"]


def test_a_description_names_both_phases_where_they_differ() -> None:
    split = hint({"prefill": {"na": 4}, "decode": {"min_ratio": 0.5}})
    assert describe(split) == {"profile": "custom", "mean_na": {"prefill": 4.0, "decode": 6.0}, "dynamic": True}
