"""Reloading the policy: what new requests meet, what those under way keep, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_moe_opt.engine.http.reload import adopt, successor
from sglang_moe_opt.engine.http.resolver import Resolver, WireHint
from sglang_moe_opt.engine.request import WIRE_KEY, namespaced
from sglang_moe_opt.engine.rows import ROW_CAPACITY
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.hints import HintError, ResolvedHint, resolve
from sglang_moe_opt.policy import Policy, PolicyError
from tests.engine.stand_ins import SHAPE

BEFORE = "profiles: {fast: {na: 2}, gone: {na: 1}, same: {na: 3}}\nmax_live_schedules: 4\n"
AFTER = "profiles: {fast: {na: 4}, same: {na: 3}, new: {top_p: 0.5}}\ndefault: fast\nmax_live_schedules: 2\n"


class Served:
    """A server's policy file, and the resolver of its start."""

    def __init__(self, folder: Path, text: str = BEFORE, default: str | None = None) -> None:
        self.file = folder / "policy.yaml"
        self.file.write_text(text)
        self.settings = Settings(str(self.file), default)
        self.start = Resolver.create(self.settings.load_policy(), SHAPE)

    def reload(self, text: str, current: Resolver | None = None) -> Resolver:
        self.file.write_text(text)
        after, _ = successor(current or self.start, self.settings)
        adopt(after)
        return after


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


def test_new_requests_meet_the_new_policy(served: Served) -> None:
    after = served.reload(AFTER)
    assert after.admit({"moe_skip": "fast"})[1].mean_na == 4
    assert after.admit({"moe_skip": "new"})[1].is_dynamic
    with pytest.raises(HintError, match="allowed: the profiles full, fast, same, new"):
        after.admit({"moe_skip": "gone"})
    assert (after.generation, after.live.limit) == (2, 2)


def test_what_changed_is_said(served: Served) -> None:
    served.file.write_text(AFTER)
    _, change = successor(served.start, served.settings)
    assert change.to_object() == {
        "added": ["new"],
        "removed": ["gone"],
        "redefined": ["fast"],
        "fields": ["default", "max_live_schedules"],
    }


def test_a_file_that_says_the_same_changes_nothing(served: Served) -> None:
    served.file.write_text("# a comment\n" + BEFORE)
    after, change = successor(served.start, served.settings)
    assert after is served.start and not change


def test_requests_under_way_keep_their_schedule(served: Served) -> None:
    """What was admitted under the old policy stays as it was, in this process and in the scheduler's."""
    params, hint = served.start.admit({"moe_skip": "fast"})
    after = served.reload(AFTER)
    again, same = after.admit(params)
    assert again is params and same is hint and hint.mean_na == 2
    assert ResolvedHint.from_wire(params[WIRE_KEY], SHAPE) == hint


def test_the_new_default_is_told_to_the_scheduler_and_the_old_one_again_is_not(served: Served) -> None:
    """The scheduler's own default is that of the start."""
    after = served.reload(AFTER)
    params, hint = after.admit({"other": 1})
    assert hint.profile == "fast" and isinstance(params[WIRE_KEY], WireHint) and params["other"] == 1
    assert after.admit(None)[0] == {WIRE_KEY: hint.to_wire()}
    back = served.reload(BEFORE, after)
    assert back.admit(None) == (None, back.start_default) and back.generation == 3


def test_a_session_goes_on_under_the_default_of_the_start(served: Served) -> None:
    after = served.reload(AFTER)
    assert after.admit(None, in_session=True) == (None, served.start.default)
    assert after.admit(None)[1].profile == "fast"


def test_the_cache_namespace_follows_the_definition(served: Served) -> None:
    """Not the name: what was cached under the old definition of `fast` serves `same` now, and `fast` no more."""
    after = served.reload("profiles: {fast: {na: 4}, same: {na: 2}}")
    old = {name: namespaced(None, hint.prefill) for name, hint in served.start.profile_hints().items()}
    new = {name: namespaced(None, hint.prefill) for name, hint in after.profile_hints().items()}
    assert new["fast"] not in old.values()
    assert new["same"] == old["fast"]
    assert new["full"] is old["full"] is None


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("profiles: {fast: {na: x}}", "profiles.fast.na"),
        ("profiles: {fast: {na: 2}", "policy file"),
        ("- 1", "policy"),
        ("default: slow", "default"),
        ("profiles: {deep: {layers: [1, 1]}}", "profiles.deep.layers"),
        ("prune_plan: plan.json", "prune_plan"),
        ("consolidation: {k0: 2}", "consolidation"),
        ("max_live_schedules: 100000", "max_live_schedules"),
        ("speed: 3", "speed"),
    ],
)
def test_a_bad_file_changes_nothing(served: Served, text: str, field: str) -> None:
    with pytest.raises(PolicyError) as caught:
        served.reload(text)
    assert caught.value.field == field
    assert served.start.admit({"moe_skip": "fast"})[1].mean_na == 2 and served.start.live.limit == 4


def test_a_missing_file_and_one_that_is_none(served: Served, tmp_path: Path) -> None:
    served.file.unlink()
    with pytest.raises(PolicyError, match="policy file"):
        successor(served.start, served.settings)
    with pytest.raises(PolicyError, match="policy file: got 'builtin', allowed: a file to read anew"):
        successor(served.start, Settings("builtin", None))


def test_the_flag_for_the_default_still_holds(tmp_path: Path) -> None:
    served = Served(tmp_path, default="gone")
    assert served.reload("profiles: {gone: {na: 5}}").default.mean_na == 5
    with pytest.raises(PolicyError, match="default: got 'gone'"):
        served.reload("profiles: {fast: {na: 5}}")


def test_of_consolidation_only_what_requests_carry_can_change(tmp_path: Path) -> None:
    text = "profiles: {a: {na: 5, consolidate: true}}\nconsolidation: {k0: 3, max_batch: 8, allow_custom: false}\n"
    served = Served(tmp_path, text)
    after = served.reload(text.replace("k0: 3", "k0: 2").replace("false", "true"))
    assert after.admit({"moe_skip": "a"})[1].decode.own_first.tolist() == [2] * 4
    with pytest.raises(PolicyError, match=r"consolidation.max_batch: got 9, allowed: 8"):
        served.reload(text.replace("max_batch: 8", "max_batch: 9"))
    with pytest.raises(PolicyError, match="consolidation: got None, allowed: an object"):
        served.reload("profiles: {}")


def test_requests_in_flight_need_their_rows(served: Served) -> None:
    """The table has rows for every schedule of a batch, those of policies that were replaced included."""
    for na in (1, 2, 3):
        served.start.live.in_flight.add(resolve("x", Policy.from_object({"profiles": {"x": {"na": na}}}), SHAPE))
    most = (ROW_CAPACITY - 2) // 2 - 1 - 3
    text = "profiles: {fast: {na: 4}}\nmax_live_schedules: "
    assert served.reload(f"{text}{most}").live.limit == most
    with pytest.raises(PolicyError, match=f"max_live_schedules: got {most + 1}, allowed: an integer from 1 to {most}"):
        served.reload(f"{text}{most + 1}")


def test_schedules_beyond_a_lower_limit_run_to_their_end(served: Served) -> None:
    keys = [served.start.live.acquire(served.start.admit({"moe_skip": {"na": na}})[1]) for na in (1, 2, 3, 4)]
    after = served.reload(AFTER)
    new = after.admit({"moe_skip": {"na": 5}})[1]
    for key in keys[:3]:
        with pytest.raises(HintError, match="at most 2 distinct"):
            after.live.acquire(new)
        assert key is not None
        after.live.release(key)
    assert after.live.acquire(new) is not None
