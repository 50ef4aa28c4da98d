"""Which schedule each token of a batch runs under."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from sglang_moe_opt.engine.batch import forward_batch_init, forward_raw, plan_step
from sglang_moe_opt.engine.rows import FULL_ROW
from sglang_moe_opt.engine.state import EngineState, StepPlan, set_state
from tests.engine.stand_ins import decode_batch, extend_batch, make_state, request

SPLIT = {"prefill": {"na": 4}, "decode": {"na": 2}}


def kept(state: EngineState, plan: StepPlan) -> list[int]:
    """Experts in the first MoE layer, token by token."""
    return [6 if row == FULL_ROW else int(plan.tables[row].na[0]) for row in plan.token_rows.tolist()]


def rows_of(batch: Any, num_tokens: int) -> list[int]:
    state = make_state()
    return kept(state, plan_step(state, batch, num_tokens))


def test_prompts_run_under_the_prefill_schedule() -> None:
    batch = extend_batch([request(SPLIT), request(), request({"na": 3})], [0, 0, 0], [4, 2, 1])
    assert rows_of(batch, 7) == [4] * 4 + [6] * 2 + [3]


def test_decode_runs_under_the_decode_schedule() -> None:
    assert rows_of(decode_batch([request(SPLIT), request(), request("fast")]), 3) == [2, 6, 2]


def test_several_tokens_of_one_request_in_a_decode_pass() -> None:
    assert rows_of(decode_batch([request(SPLIT), request()]), 6) == [2, 2, 2, 6, 6, 6]


def test_a_cached_prefix_is_not_computed_again() -> None:
    assert rows_of(extend_batch([request(SPLIT, prompt=10)], [7], [3]), 3) == [4] * 3


def test_chunks_of_one_prompt() -> None:
    req = request(SPLIT, prompt=10)
    assert rows_of(extend_batch([req], [0], [6]), 6) == [4] * 6
    assert rows_of(extend_batch([req], [6], [4]), 4) == [4] * 4


def test_a_retracted_request_repeats_its_generated_tokens_under_the_decode_schedule() -> None:
    req = request(SPLIT, prompt=4)  # 4 of the prompt and 3 generated tokens are computed anew
    assert rows_of(extend_batch([req], [0], [7]), 7) == [4] * 4 + [2] * 3
    assert rows_of(extend_batch([req], [3], [4]), 4) == [4] + [2] * 3
    assert rows_of(extend_batch([req], [5], [2]), 2) == [2] * 2


def test_a_mixed_chunk_carries_prompts_and_decoding_requests() -> None:
    waiting, running = request(SPLIT, prompt=8), request({"prefill": {"na": 5}, "decode": {"na": 1}}, prompt=4)
    # A decoding request's prefix is all but its last token.
    assert rows_of(extend_batch([waiting, running], [2, 4], [5, 1], mixed=True), 6) == [4] * 5 + [1]


def test_schedules_that_no_token_uses_are_left_out_of_the_plan() -> None:
    state = make_state()
    plan = plan_step(state, extend_batch([request(SPLIT)], [0], [4]), 4)
    assert [int(table.na[0]) for table in plan.tables.values()] == [4]
    full = plan_step(state, decode_batch([request(), request({"prefill": {"na": 2}})]), 2)
    assert full.tables == {} and full.token_rows.tolist() == [FULL_ROW] * 2


def test_requests_of_one_schedule_share_a_row() -> None:
    state = make_state()
    plan = plan_step(state, decode_batch([request("fast"), request("fast"), request({"na": 2})]), 3)
    assert plan.token_rows[0] == plan.token_rows[1] != plan.token_rows[2]
    assert state.rows.labels[plan.token_rows[0]] == "fast"
    assert state.rows.labels[plan.token_rows[2]] == "custom"


def test_the_hooks_hand_the_plan_from_batch_to_forward_pass() -> None:
    state = make_state()
    state._uniform = lambda plan: None
    set_state(state)
    forward_batch = SimpleNamespace(input_ids=torch.zeros(4), forward_mode=decode_batch([]).forward_mode)
    forward_batch_init(forward_batch, object, extend_batch([request(SPLIT)], [0], [4]), object())
    seen = []

    def original(runner: Any, batch: Any, *args: Any) -> str:
        seen.append((state.step.active, state.table.na[state.token_rows[:4].long(), 0].tolist(), args))
        return "output"

    assert forward_raw(original, "runner", forward_batch, "more") == "output"
    assert seen == [(True, [4] * 4, ("more",))]


def test_an_idle_batch_gets_no_plan() -> None:
    set_state(make_state())
    idle = SimpleNamespace(input_ids=torch.zeros(0), forward_mode=decode_batch([]).forward_mode)
    forward_batch_init(idle, object, decode_batch([]))
    assert vars(idle).keys() == {"input_ids", "forward_mode"}
    assert forward_raw(lambda runner, batch: "output", None, idle) == "output"
    no_ids = SimpleNamespace(input_ids=None, forward_mode=idle.forward_mode)
    forward_batch_init(no_ids, object, decode_batch([request("fast")]))
    assert forward_raw(lambda runner, batch: "output", None, no_ids) == "output"


def test_without_a_state_the_engine_is_left_alone() -> None:
    forward_batch = SimpleNamespace()
    forward_batch_init(forward_batch, object, None)
    assert vars(forward_batch) == {}
    assert forward_raw(lambda *args, **kwargs: (args, kwargs), 1, 2, 3, key=4) == ((1, 2, 3), {"key": 4})
