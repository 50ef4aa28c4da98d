"""The step under way: what is written to the device and what the routing hooks are told."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_moe_opt.engine.rows import FULL_ROW, NONE_ROW
from sglang_moe_opt.engine.state import ROW_CAPACITY, EngineState, StepPlan, get_state, set_state
from sglang_moe_opt.policy import Policy, PolicyError
from tests.engine.stand_ins import SHAPE, hint, make_state


def plan(state: EngineState, *values: object) -> StepPlan:
    """One token per value."""
    tables, rows = {}, []
    for value in values:
        one = hint(value).decode
        row = state.rows.assign("custom", one)
        rows.append(row)
        if row != FULL_ROW:
            tables[row] = one
    return StepPlan(np.asarray(rows, np.int32), tables)


def test_reserved_rows_keep_nothing_and_everything() -> None:
    state = make_state()
    assert state.table.na[NONE_ROW].tolist() == [0] * 4
    assert state.table.na[FULL_ROW].tolist() == [6] * 4
    assert state.layer_index == {1: 0, 2: 1, 3: 2, 4: 3}
    assert not state.always_on


def test_full_alone_is_inactive_on_cpu_and_active_under_graphs() -> None:
    for always_on in (False, True):
        state = make_state(always_on=always_on)
        state.begin_step(plan(state, "full", "full"), 2)
        assert state.step.active is always_on
        assert state.step.width is None
        if always_on:
            assert state.token_rows[:2].tolist() == [FULL_ROW] * 2


def test_a_step_without_a_plan_runs_in_full() -> None:
    state = make_state(always_on=True)
    state.begin_step(None, 3)
    assert state.token_rows[:4].tolist() == [FULL_ROW] * 3 + [NONE_ROW]
    assert state.step.width is None


def test_rows_are_written_and_pending_schedules_reach_the_table() -> None:
    state = make_state()
    step = plan(state, {"na": 2}, "full", {"layers": [1, 2, 3, 4]})
    state.begin_step(step, 3)
    assert state.step.active
    assert state.token_rows[:3].tolist() == step.token_rows.tolist()
    assert state.table.na[step.token_rows[0]].tolist() == [2] * 4
    assert state.table.na[step.token_rows[2]].tolist() == [1, 2, 3, 4]
    assert list(state.rows.take_pending()) == []


def test_pending_rows_are_written_even_by_an_inactive_step() -> None:
    state = make_state()
    row = state.rows.assign("custom", hint({"na": 3}).decode)
    state.begin_step(None, 1)
    assert state.table.na[row].tolist() == [3] * 4


def test_width_is_the_most_that_any_token_keeps() -> None:
    state = make_state()
    state.begin_step(plan(state, {"na": 2}, {"layers": [1, 2, 3, 4]}), 2)
    assert state.step.width is not None
    assert state.step.width.tolist() == [2, 2, 3, 4]


def test_one_full_token_or_a_graph_leaves_the_width_unknown() -> None:
    state = make_state()
    state.begin_step(plan(state, {"na": 2}, "full"), 2)
    assert state.step.active and state.step.width is None
    on = make_state(always_on=True)
    on.begin_step(plan(on, {"na": 2}), 1)
    assert on.step.width is None


def test_dynamic_where_some_schedule_reads_the_weights() -> None:
    state = make_state()
    state.begin_step(plan(state, {"na": 2}), 1)
    assert not state.step.dynamic
    state.begin_step(plan(state, {"na": 2}, {"min_ratio": 0.5}), 2)
    assert state.step.dynamic
    assert make_state(always_on=True).step.dynamic is False
    on = make_state(always_on=True)
    on.begin_step(None, 1)
    assert on.step.dynamic  # a captured graph serves every schedule


def test_rows_behind_a_shorter_batch_count_as_padding_where_graphs_read_them() -> None:
    state = make_state(always_on=True)
    state.begin_step(plan(state, *[{"na": 2}] * 5), 5)
    state.begin_step(plan(state, {"na": 3}), 1)
    assert state.token_rows[0] != NONE_ROW
    assert (state.token_rows[1:] == NONE_ROW).all()


def test_one_static_schedule_leaves_nothing_to_drop() -> None:
    state = make_state()
    for hints, uniform in (
        ([{"na": 2}] * 3, [2] * 4),
        ([{"na": 2}, {"na": 3}], None),
        ([{"na": 2}, "full"], None),
        ([{"na": 2, "rescale": 1.5}], None),
        ([{"min_ratio": 0.2}], None),
        (["full"], None),
    ):
        state.begin_step(plan(state, *hints), len(hints))
        found = state.step.uniform
        assert (None if found is None else found.tolist()) == uniform
        assert state.step.active == (uniform is None and hints != ["full"])


def test_a_longer_pass_grows_the_buffers_on_cpu() -> None:
    state = make_state(max_tokens=2)
    step = plan(state, *[{"na": 2}] * 4, {"na": 3})
    state.begin_step(step, 5)
    assert state.token_rows.tolist() == step.token_rows.tolist()
    assert len(state.stats.kept) == 5
    assert state.stats.touched.shape == (4, SHAPE.num_experts)


def test_a_longer_pass_is_an_error_where_graphs_hold_the_addresses() -> None:
    state = make_state(max_tokens=2, always_on=True)
    with pytest.raises(RuntimeError, match=r"3 tokens exceeds the 2 reserved.*--max-prefill-tokens"):
        state.begin_step(plan(state, *[{"na": 2}] * 3), 3)


def test_device_addresses_never_move_under_graphs() -> None:
    state = make_state(always_on=True)
    before = [t.data_ptr() for t in (state.token_rows, state.table.na, state.stats.kept)]
    for na in (1, 2, 3):
        state.begin_step(plan(state, {"na": na}), 1)
    assert [t.data_ptr() for t in (state.token_rows, state.table.na, state.stats.kept)] == before


def test_a_sample_starts_from_no_expert() -> None:
    state = make_state()
    state.stats.touched.fill_(1)
    state.begin_step(None, 1)
    assert state.stats.touched.all()
    state.begin_step(None, 1, sample=True)
    assert not state.stats.touched.any()
    assert (state.step.index, state.step.num_tokens, state.step.sample) == (2, 1, True)


def test_a_policy_that_lets_more_schedules_in_than_there_are_rows_is_refused() -> None:
    def create(policy: Policy) -> None:
        EngineState.create(SHAPE, policy, hint(), "cpu", 1)

    profiles = {"a": {"na": 1}, "b": {"na": 2}}
    most = (ROW_CAPACITY - 2) // 2 - len(profiles)
    create(Policy.from_object({"profiles": profiles, "max_live_schedules": most}))
    with pytest.raises(PolicyError, match=f"max_live_schedules: got {most + 1}, allowed: an integer from 1 to {most}"):
        create(Policy.from_object({"profiles": profiles, "max_live_schedules": most + 1}))


def test_the_state_is_one_per_process() -> None:
    assert get_state() is None
    state = make_state()
    set_state(state)
    assert get_state() is state
