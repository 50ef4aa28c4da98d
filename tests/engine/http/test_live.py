"""The limit on distinct custom schedules in flight."""

from __future__ import annotations

import pytest

from sglang_moe_opt.engine.http.live import InFlight, LiveSchedules
from sglang_moe_opt.hints import HintError, resolve
from sglang_moe_opt.policy import Policy
from tests.engine.stand_ins import SHAPE, hint


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


def test_one_client_cannot_take_all() -> None:
    live = LiveSchedules(4, per_client=2)
    mine = [live.acquire(hint({"na": na}), "a") for na in (1, 2)]
    with pytest.raises(HintError, match=r"at most 2 of one client .*max_live_schedules_per_client") as caught:
        live.acquire(hint({"na": 3}), "a")
    assert caught.value.status == 429
    assert live.acquire(hint({"na": 2}), "a") is not None  # one of its own
    theirs = live.acquire(hint({"na": 3}), "b")
    live.acquire(hint({"na": 1}), "b")
    assert len(live) == 3
    live.release(mine[0])  # type: ignore[arg-type]
    assert len(live) == 3  # b still runs it
    assert live.acquire(hint({"na": 3}), "a") is not None
    live.release(theirs)  # type: ignore[arg-type]
    assert len(live) == 3


def test_the_limit_of_all_counts_for_every_client() -> None:
    live = LiveSchedules(1, per_client=1)
    live.acquire(hint({"na": 1}), "a")
    with pytest.raises(HintError, match="at most 1 distinct"):
        live.acquire(hint({"na": 2}), "b")
    assert live.acquire(hint({"na": 1}), "b") is not None


def test_nothing_is_remembered_of_clients_that_left() -> None:
    live = LiveSchedules(4, per_client=2)
    for number in range(100):
        key = live.acquire(hint({"na": 1}), str(number))
        assert key is not None
        live.release(key)
    assert (live._schedules, live._clients) == ({}, {})


def test_requests_in_flight_by_profile_and_of_policies_that_were_replaced() -> None:
    flying = InFlight()
    old = resolve("fast", Policy.from_object({"profiles": {"fast": {"na": 3}}}), SHAPE)
    for one in (hint("fast"), hint("fast"), old, hint({"na": 1}), hint("full")):
        flying.add(one)
    assert flying.by_profile() == {"fast": 3, "custom": 1, "full": 1}
    assert flying.profiles_beside([hint("fast"), hint("full")]) == 1
    for one in (hint("fast"), hint("fast"), old, hint({"na": 1}), hint("full")):
        flying.remove(one)
    assert not flying.by_profile()


def test_phases_make_a_schedule_of_their_own() -> None:
    live = LiveSchedules(3)
    for value in ({"na": 1}, {"decode": {"na": 1}}, {"prefill": {"na": 1}}):
        live.acquire(hint(value))
    assert len(live) == 3
