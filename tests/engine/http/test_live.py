"""The limit on distinct custom schedules in flight."""

from __future__ import annotations

import pytest

from sglang_moe_opt.engine.http.live import LiveSchedules
from sglang_moe_opt.hints import HintError
from tests.engine.stand_ins import hint


def test_profiles_and_the_full_model_do_not_count() -> None:
    live = LiveSchedules(1)
    for value in (None, "full", "fast", {"profile": "fast"}, {"na": 6}):
        assert live.acquire(hint(value)) is None
    assert len(live) == 0


def test_one_schedule_too_many_is_429() -> None:
    live = LiveSchedules(2)
    live.acquire(hint({"na": 1}))
    live.acquire(hint({"na": 2}))
    with pytest.raises(HintError, match=r"at most 2 distinct custom schedules.*max_live_schedules.*retry") as caught:
        live.acquire(hint({"na": 3}))
    assert caught.value.status == 429
    assert len(live) == 2


def test_requests_of_one_schedule_count_once_and_until_the_last_is_out() -> None:
    live = LiveSchedules(1)
    keys = [live.acquire(hint({"na": 1})) for _ in range(3)]
    assert len(live) == 1
    for key in keys:
        assert key is not None
        with pytest.raises(HintError):
            live.acquire(hint({"na": 2}))
        live.release(key)
    assert len(live) == 0
    assert live.acquire(hint({"na": 2})) is not None


def test_phases_make_a_schedule_of_their_own() -> None:
    live = LiveSchedules(3)
    for value in ({"na": 1}, {"decode": {"na": 1}}, {"prefill": {"na": 1}}):
        live.acquire(hint(value))
    assert len(live) == 3
