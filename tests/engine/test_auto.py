"""Auto profiles in the scheduler: whose tokens run which level, what is cached, what is counted."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from sglang_moe_opt.engine.auto import MAX_CONTROLLERS, AutoLevels
from sglang_moe_opt.engine.batch import plan_step
from sglang_moe_opt.engine.metrics import StepMetrics
from sglang_moe_opt.engine.request import WIRE_KEY, checkpoint_prompt_only, namespaced, request_init
from sglang_moe_opt.engine.rows import FULL_ROW
from sglang_moe_opt.engine.state import ROW_CAPACITY, EngineState, set_state
from sglang_moe_opt.hints import ResolvedHint, resolve
from sglang_moe_opt.policy import Policy, PolicyError
from tests.engine.stand_ins import SHAPE, decode_batch, extend_batch

POLICY = Policy.from_object(
    {
        "profiles": {
            "fast": {"na": 2},
            "lean": {"na": 1},
            "auto": {
                "auto": {
                    "levels": ["full", "fast", "lean"],
                    "speedup": {"fast": {1: 1.5, 2: 1.5, 3: 1.0}, "lean": {1: 2.0, 2: 1.5, 3: 1.0}},
                    "hold_steps": 2,
                }
            },
            "early": {"auto": {"levels": ["fast", "lean"], "speedup": {"fast": {1: 1}, "lean": {1: 2}}}},
        }
    }
)
"""`auto` wants lean at one token, fast at two, full from three on; `early` always lean."""


def make_state(**changed: Any) -> EngineState:
    state = EngineState.create(SHAPE, POLICY, resolve(None, POLICY, SHAPE), "cpu", 64)
    for name, value in changed.items():
        setattr(state, name, value)
    return state


HINTS = {name: resolve(name, POLICY, SHAPE) for name in POLICY.names}


def request(name: str = "auto", prompt: int = 4) -> SimpleNamespace:
    return SimpleNamespace(moe_opt_hint=HINTS[name], origin_input_ids=[0] * prompt)


def kept(state: EngineState, batch: Any, num_tokens: int | None = None) -> list[int]:
    """Experts in the first MoE layer, token by token."""
    plan = plan_step(state, batch, len(batch.reqs) if num_tokens is None else num_tokens)
    return [6 if row == FULL_ROW else int(plan.tables[row].na[0]) for row in plan.token_rows.tolist()]


def test_a_batch_of_one_runs_its_level_from_the_first_step() -> None:
    state = make_state()
    assert kept(state, decode_batch([request()])) == [1]
    plan = plan_step(state, decode_batch([one := request()]), 1)
    state.begin_step(plan, 1)
    assert state.step.uniform is not None and state.step.uniform.tolist() == [1] * 4  # the router is asked for fewer
    assert one.moe_opt_has_decoded


def test_a_running_answer_changes_its_level_after_hold_steps() -> None:
    state = make_state()
    first, second = request(), request()
    assert kept(state, decode_batch([first])) == [1]
    seen = [kept(state, decode_batch([first, second])) for _ in range(3)]
    assert seen == [[1, 1], [2, 2], [2, 2]]


def test_others_keep_their_schedules_and_count_as_tokens() -> None:
    state = make_state()
    batch = decode_batch([request("lean"), request(), request("full"), request()])
    assert kept(state, batch) == [1, 6, 6, 6]  # four tokens: full


def test_where_no_answer_runs_the_next_begins_at_its_own_level() -> None:
    state = make_state()
    kept(state, decode_batch([request()]))
    assert kept(state, decode_batch([request(), request(), request()])) == [6] * 3
    assert kept(state, decode_batch([request()])) == [1]


def test_each_auto_profile_has_a_controller_of_its_own() -> None:
    state = make_state()
    assert kept(state, decode_batch([request(), request("early"), request()])) == [6, 1, 6]


def test_prompts_run_the_prefill_schedule_whatever_the_level() -> None:
    state = make_state()
    kept(state, decode_batch([request()]))
    assert kept(state, extend_batch([request(), request("early")], [0, 0], [4, 3]), 7) == [6] * 7


def test_prefill_steps_and_idle_ones_change_no_level() -> None:
    state = make_state()
    running = request()
    kept(state, decode_batch([running]))
    for _ in range(5):
        kept(state, extend_batch([request(), request(), request()], [0] * 3, [4] * 3), 12)
    assert state.auto.find(running.moe_opt_hint).controller.level == 2


def test_generated_tokens_outside_decode_steps_run_the_level_of_the_moment() -> None:
    """Those of a retracted request, computed anew, and those that ride along with a chunk of a prompt."""
    state = make_state()
    retracted = request(prompt=4)
    kept(state, decode_batch([retracted, request()]))
    assert kept(state, extend_batch([retracted], [0], [7]), 7) == [6] * 4 + [2] * 3
    assert kept(state, extend_batch([request(prompt=8), retracted], [2, 6], [5, 1], mixed=True), 6) == [6] * 5 + [2]


def test_two_ranks_agree() -> None:
    ranks = [make_state(), make_state()]
    requests = [[request() for _ in range(4)] for _ in ranks]
    sizes = [1, 1, 2, 2, 2, 4, 4, 1, 1, 3, 3, 3]
    seen = [[kept(state, decode_batch(reqs[:n])) for n in sizes] for state, reqs in zip(ranks, requests, strict=True)]
    assert seen[0] == seen[1]
    assert len({row[0] for row in seen[0]}) == 3


def test_what_an_auto_profile_generates_is_never_cached() -> None:
    """Also where prompt and gentlest level, or prompt and current level, are the same schedule."""

    def kept_up_to(hint: ResolvedHint) -> int:
        req = SimpleNamespace(moe_opt_hint=hint, origin_input_ids=[0] * 10, kv=SimpleNamespace(cache_protected_len=0))
        return int(checkpoint_prompt_only("tree", req, up_to=15)[1]["up_to"])

    rule = {"levels": ["fast", "lean"], "speedup": {"fast": {1: 1}, "lean": {1: 2}}, "prefill": "fast"}
    same = Policy.from_object({"profiles": {"fast": {"na": 2}, "lean": {"na": 1}, "auto": {"auto": rule}}})
    hint = resolve("auto", same, SHAPE)
    assert hint.prefill == hint.decode
    assert [kept_up_to(one) for one in (HINTS["auto"], hint)] == [10, 10]
    assert kept_up_to(HINTS["fast"]) == 15


def new_req(wire: str) -> Any:
    req = SimpleNamespace(sampling_params=SimpleNamespace(custom_params={WIRE_KEY: wire}), extra_key=None, aborted=None)
    req.set_finish_with_abort = lambda message: setattr(req, "aborted", message)
    return req


def test_the_cache_namespace_is_the_prefill_schedules() -> None:
    set_state(make_state())
    req = new_req(HINTS["auto"].to_wire())
    request_init(None, req)
    assert req.moe_opt_hint == HINTS["auto"] and req.aborted is None
    assert req.extra_key is namespaced(None, HINTS["full"].prefill) is None


def redefined(**changed: Any) -> ResolvedHint:
    """The profile `auto` of a policy that was reloaded."""
    rule = {"levels": ["full", "lean"], "speedup": {"lean": {1: 2.0}}, "hold_steps": 2, **changed}
    return resolve("auto", Policy.from_object({"profiles": {"lean": {"na": 1}, "auto": {"auto": rule}}}), SHAPE)


def test_a_request_brings_the_definition_that_it_was_admitted_under() -> None:
    """The scheduler's own policy is that of the start; after a reload requests of both definitions run side by side."""
    state = make_state()
    set_state(state)
    req = new_req(redefined().to_wire())
    request_init(None, req)
    assert req.aborted is None and req.moe_opt_hint == redefined()
    req.origin_input_ids = [0] * 4
    assert kept(state, decode_batch([req, request(), request()])) == [1, 6, 6]  # the old one: full at three tokens
    assert kept(state, decode_batch([req])) == [1]
    assert [auto.profile for auto in state.auto.by_key.values()] == ["early", "auto", "auto"]


def test_definitions_are_not_remembered_without_end() -> None:
    levels = AutoLevels.of(POLICY, SHAPE)
    for step in range(1, 2 * MAX_CONTROLLERS):
        levels.find(redefined(hold_steps=step))
        levels.find(HINTS["auto"])
    assert len(levels.by_key) == MAX_CONTROLLERS
    assert HINTS["auto"].key in levels.by_key and HINTS["early"].key not in levels.by_key


@pytest.mark.parametrize(
    "change", [{"levels": []}, {"levels": [{}]}, {"auto": {}}, {"auto": {"levels": 3}}, {"auto": 3}]
)
def test_a_broken_auto_profile_aborts_its_request(change: dict[str, Any]) -> None:
    set_state(make_state())
    req = new_req(json.dumps(json.loads(HINTS["auto"].to_wire()) | change))
    request_init(None, req)
    assert req.aborted.startswith("sglang-moe-opt: wire")
    assert req.moe_opt_hint == HINTS["full"]


def test_levels_take_rows_of_the_schedule_table() -> None:
    most = (ROW_CAPACITY - 2 - 5) // 2 - 4
    policy = POLICY.model_copy(update={"max_live_schedules": most + 1})
    with pytest.raises(PolicyError, match=f"max_live_schedules: got {most + 1}, allowed: an integer from 1 to {most}"):
        EngineState.create(SHAPE, policy, HINTS["full"], "cpu", 1)


def test_metrics() -> None:
    def value(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"sglang_moe_opt_auto_{name}", labels)

    before = set(REGISTRY._collector_to_names)
    try:
        state = make_state()
        counters = StepMetrics(state)
        first, second = request(), request()
        for reqs in ([first], [first, second], [first, second], [first, second, request("full")]):
            plan = plan_step(state, decode_batch(reqs), len(reqs))
            state.begin_step(plan, len(reqs))
            counters.after_step(plan, is_decode=True)
        counters.publish()
        counters.publish()  # nothing is counted twice
        assert value("tokens_total", profile="auto", level="lean") == 1 + 2
        assert value("tokens_total", profile="auto", level="fast") == 2 + 2
        assert value("switches_total", profile="auto") == 2  # full to lean at once, lean to fast
        assert value("switches_total", profile="early") == 0
        assert value("level", profile="auto") == 1
    finally:
        for collector in set(REGISTRY._collector_to_names) - before:
            REGISTRY.unregister(collector)
