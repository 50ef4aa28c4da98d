"""A request's schedule and its cache namespace."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.engine.request import WIRE_KEY, checkpoint_prompt_only, namespaced, request_init
from sglang_moe_opt.engine.settings import ISOLATION_ENV, PRUNE_ENV
from sglang_moe_opt.engine.state import set_state
from tests.engine.pruning.small_checkpoint import write_plan
from tests.engine.stand_ins import hint, make_state

FULL = hint("full").prefill
SCHEDULES = [FULL, *(hint({"na": na}).prefill for na in (1, 2, 3)), hint({"min_ratio": 0.5}).prefill]
LORA_ID = "0123456789abcdef0123456789abcdef"


def new_req(custom_params: Any = None, extra_key: str | None = None) -> SimpleNamespace:
    req = SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params=custom_params), extra_key=extra_key, aborted=None
    )
    req.set_finish_with_abort = lambda message: setattr(req, "aborted", message)
    return req


# --- namespaces ---


def test_full_keeps_upstreams_key() -> None:
    assert namespaced(None, FULL) is None
    assert namespaced("tenant", FULL) == "tenant"


def test_each_schedule_has_a_namespace_of_its_own() -> None:
    keys = {namespaced("tenant", table) for table in SCHEDULES}
    assert len(keys) == len(SCHEDULES)
    assert namespaced(None, hint("fast").prefill) == namespaced(None, hint({"na": 2}).prefill)


def test_a_lora_id_stays_at_the_end() -> None:
    for table in SCHEDULES:
        for key in (LORA_ID, "tenant" + LORA_ID):
            marked = namespaced(key, table)
            assert marked is not None and marked[-32:] == LORA_ID


@pytest.mark.parametrize("target", SCHEDULES[1:])
def test_nobody_reaches_into_another_namespace(target: Any) -> None:
    spoofed = namespaced(None, target)
    assert spoofed is not None
    for table in SCHEDULES:
        marked = namespaced(spoofed, table)
        assert marked not in {namespaced(key, other) for key in (None, "tenant") for other in SCHEDULES}


user_keys = st.none() | st.text(min_size=1, max_size=8) | st.just("moe-skip:full|")
nested_keys = st.builds(
    lambda key, tables: [key := namespaced(key, table) for table in tables][-1],
    user_keys,
    st.lists(st.sampled_from(SCHEDULES), min_size=1, max_size=3),
)
pairs = st.tuples(user_keys | nested_keys, st.sampled_from(SCHEDULES))


@given(pairs, pairs)
def test_two_pairs_of_key_and_schedule_never_meet(one: Any, other: Any) -> None:
    assert (namespaced(*one) == namespaced(*other)) == (one == other)


# --- Req.__init__ ---


def test_a_request_without_a_hint_runs_under_the_default() -> None:
    set_state(make_state(default="fast"))
    for params in (None, {}, {"thinking_budget": 3}, "not an object", [1]):
        req = new_req(params)
        request_init(None, req)
        assert req.moe_opt_hint == hint("fast")
        assert req.extra_key == namespaced(None, hint("fast").prefill)
        assert req.aborted is None


def test_a_resolved_hint_is_taken_over() -> None:
    set_state(make_state())
    value = {"prefill": {"na": 3}, "decode": {"na": 1}}
    req = new_req({WIRE_KEY: hint(value).to_wire(), "other": 1}, extra_key="tenant")
    request_init(None, req)
    assert req.moe_opt_hint == hint(value)
    assert req.extra_key == namespaced("tenant", hint(value).prefill)


@pytest.mark.parametrize("wire", ["", "{", "{}", 3, 1.5, True, [], {}, [1], {"na": 2}, b"\xff", object(), "[" * 10**5])
def test_what_cannot_be_read_aborts_the_request_and_never_raises(wire: object) -> None:
    set_state(make_state(default="fast"))
    req = new_req({WIRE_KEY: wire}, extra_key="tenant")
    request_init(None, req)
    assert req.aborted is not None and req.aborted.startswith("sglang-moe-opt: ")
    assert req.moe_opt_hint == hint("fast")
    # An aborted request still runs one token: it must not be cached as if the full model had computed it.
    assert req.extra_key == namespaced("tenant", hint("fast").prefill)


def test_isolation_can_be_switched_off_for_a_demonstration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISOLATION_ENV, "0")
    set_state(make_state(default="fast"))
    req = new_req(extra_key="tenant")
    request_init(None, req)
    assert req.extra_key == "tenant"


def test_without_a_state_a_request_is_left_alone() -> None:
    req = new_req({WIRE_KEY: "{"}, extra_key="tenant")
    request_init(None, req)
    assert req.extra_key == "tenant" and req.aborted is None
    assert not hasattr(req, "moe_opt_hint")


# --- checkpoint ---


def checkpointed(value: object, up_to: int, prompt: int = 10, protected: int = 0) -> int:
    req = SimpleNamespace(
        moe_opt_hint=hint(value), origin_input_ids=[0] * prompt, kv=SimpleNamespace(cache_protected_len=protected)
    )
    args, kwargs = checkpoint_prompt_only("tree", req, up_to=up_to, more=1)
    assert args == ("tree", req) and kwargs.pop("more") == 1
    return int(kwargs["up_to"])


def test_generated_text_is_cached_only_under_the_prompts_own_schedule() -> None:
    split = {"prefill": "full", "decode": "fast"}
    assert checkpointed(split, up_to=15) == 10
    assert checkpointed(split, up_to=7) == 7
    for same in ("full", "fast", {"prefill": "fast", "decode": {"na": 2}}):
        assert checkpointed(same, up_to=15) == 15


def test_the_tree_is_never_asked_to_go_back_behind_what_it_already_holds() -> None:
    assert checkpointed({"decode": "fast"}, up_to=15, protected=12) == 12


def test_a_request_from_before_the_plugin_is_cached_as_ever() -> None:
    assert checkpoint_prompt_only("tree", "req", up_to=5) == (("tree", "req"), {"up_to": 5})


# --- plans ---


def test_every_request_of_a_pruned_model_carries_the_plans_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = write_plan(tmp_path / "plan.json", {1: (0, 3), 2: (1, 2)}).plan.digest
    monkeypatch.setenv(PRUNE_ENV, str(tmp_path / "plan.json"))
    req = new_req(extra_key="tenant")
    request_init(None, req)
    assert req.extra_key == f"moe-prune:{digest}|tenant"
    assert not hasattr(req, "moe_opt_hint")  # skipping is not configured
    set_state(make_state(default="fast"))
    req = new_req(extra_key=LORA_ID)
    request_init(None, req)
    schedule = namespaced(LORA_ID, hint("fast").prefill)
    assert req.extra_key == f"moe-prune:{digest}|{schedule}"
