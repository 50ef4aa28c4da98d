"""The level of every step: replayed, held, never below the floor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.auto import Controller
from tests.auto.curves import MODEL

Step = tuple[int, int, bool]

steps = st.lists(
    st.integers(1, 256).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.booleans())), max_size=200
)


def levels(recorded: list[Step], hold_steps: int = 4, min_gain: float = 1.03) -> list[int]:
    controller = Controller(MODEL, min_gain, hold_steps)
    return [controller.step(*step) for step in recorded]


def same(tokens: int, count: int, opted: int | None = None) -> list[Step]:
    return [(tokens, tokens if opted is None else opted, False)] * count


def test_a_ramp_up_and_down_replayed() -> None:
    """1 -> 64 -> 1: cheap where it pays, balanced where it is as fast, each after four steps that agree."""
    ramp = [(1, 1, True), *same(1, 3), *same(8, 4), *same(64, 10), *same(8, 6), *same(1, 3)]
    assert levels(ramp) == [2] * 8 + [2] * 3 + [1] * 7 + [1] * 3 + [2] * 3 + [2] * 3


def test_others_in_the_batch_change_the_level_too() -> None:
    alone_then_crowded = [(4, 4, True), *same(4, 4), *same(64, 6, opted=4), *same(4, 6)]
    assert levels(alone_then_crowded) == [2] * 5 + [2] * 3 + [0] * 3 + [0] * 3 + [2] * 3


def test_a_controller_begins_gentle() -> None:
    assert levels(same(8, 5)) == [0, 0, 0, 2, 2]


def test_where_no_answer_runs_the_level_follows_at_once() -> None:
    assert levels([(64, 64, True), (8, 8, True), (64, 64, False), (64, 64, True)]) == [1, 2, 2, 1]


def test_one_step_that_disagrees_starts_the_count_again() -> None:
    controller = Controller(MODEL, 1.03, 3)
    controller.step(8, 8, fresh=True)
    seen = [controller.step(*step) for step in [*same(64, 2), *same(8, 1), *same(64, 2), *same(64, 1)]]
    assert seen == [2, 2, 2, 2, 2, 1]


def test_it_moves_only_as_far_as_all_steps_wanted() -> None:
    """From full: two steps that want `fast` and one that wants `balanced` agree on `balanced`."""
    controller = Controller(MODEL, 1.03, 3)
    assert [controller.step(*step) for step in [*same(8, 2), *same(64, 1)]] == [0, 0, 1]


def test_switches_are_counted() -> None:
    controller = Controller(MODEL, 1.03, 1)
    for step in [*same(64, 3), *same(8, 2), *same(64, 1, opted=1)]:
        controller.step(*step)
    assert (controller.switches, controller.level) == (3, 0)


@pytest.mark.parametrize("hold_steps", [2, 4, 16])
def test_a_load_at_the_boundary_does_not_flap(hold_steps: int) -> None:
    """The load swings across the boundary faster than `hold_steps`: the level stays."""
    swing = [*same(64, hold_steps - 1), *same(8, 1)] * 20
    controller = Controller(MODEL, 1.03, hold_steps)
    controller.step(8, 8, fresh=True)
    assert {controller.step(*step) for step in swing} == {2}
    assert controller.switches == 1  # the first step's


@given(steps, st.integers(1, 20), st.floats(1, 1.5))
def test_deterministic_and_within_the_levels(recorded: list[Step], hold_steps: int, min_gain: float) -> None:
    found = levels(recorded, hold_steps, min_gain)
    assert found == levels(recorded, hold_steps, min_gain)
    assert set(found) <= {0, 1, 2}
    assert found[: len(found) // 2] == levels(recorded[: len(found) // 2], hold_steps, min_gain)


@given(steps, st.integers(2, 20))
def test_while_answers_run_changes_are_hold_steps_apart(recorded: list[Step], hold_steps: int) -> None:
    controller = Controller(MODEL, 1.03, hold_steps)
    since = 0
    for tokens, opted, _ in recorded:
        before = controller.level
        since += 1
        if controller.step(tokens, opted) != before:
            assert since >= hold_steps
            since = 0


@given(steps, st.integers(1, 8), st.integers(1, 256))
def test_a_steady_load_reaches_its_level(recorded: list[Step], hold_steps: int, tokens: int) -> None:
    found = levels([*recorded, *same(tokens, 2 * hold_steps)], hold_steps)
    assert found[-1] == MODEL.best(tokens, tokens, 1.03)
