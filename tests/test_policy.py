"""The policy file: what it may say, and the one line it fails with."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy, PolicyError
from sglang_moe_opt.schedule import PhasedSchedule, SkipSchedule
from tests.model_shapes import V2_LITE

SMALL = MoEShape(4, (1, 2, 3), 4, 8, 0, True, "softmax")

DESIGN = """
profiles:
  balanced: {schedule: [6, 4, 2, 26]}
  fast:     {na: 2}
  adaptive: {min_ratio: 0.2, min_na: 2}
  split:    {prefill: full, decode: {na: 2}}
  late:     {decode: {top_p: 0.9}}
  each:     {min_ratio: [0.2, 0.1, 0.3]}
default: balanced
allow_custom: false
min_na: 1
max_live_schedules: 8
prune_plan: plan.json
consolidation: {k0: 3, max_batch: 64}
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    return file


def test_the_documented_file(tmp_path: Path) -> None:
    policy = Policy.load(write(tmp_path, DESIGN))
    assert policy.names == ("full", "balanced", "fast", "adaptive", "split", "late", "each")
    assert policy.profile("balanced").decode == SkipSchedule(schedule=(6, 4, 2, 26))
    assert policy.profile("split") == PhasedSchedule(SkipSchedule(), SkipSchedule(na=2))
    assert policy.profile("late").prefill == SkipSchedule()
    assert policy.profile("full") == PhasedSchedule.uniform(SkipSchedule())
    assert (policy.default, policy.allow_custom, policy.max_live_schedules) == ("balanced", False, 8)
    assert policy.consolidation is not None and policy.consolidation.max_batch == 64
    assert policy.profile("each").decode == SkipSchedule(min_ratio=(0.2, 0.1, 0.3))
    with pytest.raises(PolicyError, match=r"profiles.each.min_ratio"):
        policy.check(V2_LITE)


@pytest.mark.parametrize("shape", [V2_LITE, SMALL])
def test_the_builtin_policy_runs_everywhere_and_changes_nothing_by_default(shape: MoEShape) -> None:
    policy = Policy.builtin()
    policy.check(shape)
    assert policy.default == "full"
    assert set(policy.names) == {"full", "balanced", "fast", "adaptive"}


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert Policy.load(write(tmp_path, "# nothing\n")) == Policy()


def test_dump_and_parse_agree(tmp_path: Path) -> None:
    policy = Policy.load(write(tmp_path, DESIGN))
    dumped = policy.model_dump()
    assert dumped["profiles"]["fast"] == {"na": 2}
    dumped["profiles"]["split"] = {"prefill": "full", "decode": {"na": 2}}
    dumped["profiles"]["late"] = {"decode": {"top_p": 0.9}}
    assert Policy.from_object(dumped) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "policy file: got "),
        ("- 1", "policy: got [1], allowed: an object with the keys profiles"),
        ("unknown: 1", "unknown: got 1, allowed: only the keys profiles"),
        ("profiles: 3", "profiles: got 3, allowed: an object"),
        ("profiles: {full: {na: 1}}", "profiles: got 'full', allowed: 1 to 64 of"),
        ("profiles: {custom: {na: 1}}", "profiles: got 'custom'"),
        ("profiles: {'a b': {na: 1}}", "profiles: got 'a b'"),
        ("profiles: {1: {na: 1}}", "profiles: got 1"),
        (f"profiles: {{{'a' * 65}: {{na: 1}}}}", "profiles: got 'aaa"),
        ("profiles: {a: {na: x}}", "profiles.a.na: got 'x', allowed: an integer from 0"),
        ("profiles: {a: {na: 1, b: 2}}", "profiles.a: got 'b', allowed: the keys na"),
        ("profiles: {a: {}}", "profiles.a: got [], allowed: exactly one of na"),
        ("profiles: {a: fast}", "profiles.a: got 'fast'"),
        ("profiles: {a: {decode: {prefill: {na: 1}}}}", "profiles.a.decode: got "),
        ("profiles: {a: {min_ratio: .nan}}", "profiles.a.min_ratio: got nan"),
        ("profiles: {a: {decode: {top_p: [0.5, 2]}}}", "profiles.a.decode.top_p[1]: got 2, allowed: a number above 0"),
        ("default: fast", "default: got 'fast', allowed: the profiles full"),
        ("allow_custom: 1", "allow_custom: got 1"),
        ("min_na: true", "min_na: got True"),
        ("min_na: -1", "min_na: got -1"),
        ("max_live_schedules: 0", "max_live_schedules: got 0"),
        ("consolidation: {k0: 0, max_batch: 1}", "consolidation.k0: got 0"),
        ("consolidation: {k0: 1, max_batch: 1, x: 1}", "consolidation.x: got 1, allowed: only the keys k0"),
    ],
)
def test_a_bad_file_fails_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load(write(tmp_path, text))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="readable UTF-8"):
        Policy.load(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="readable UTF-8"):
        Policy.load(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profiles: {a: {layers: [2, 2]}}", r"profiles.a.layers: got \[2, 2\], allowed: a list of 3 integers"),
        (
            "profiles: {a: {schedule: [2, 2, 2, 26]}}",
            r"profiles.a.schedule\[3\]: got 26, allowed: an integer from 1 to 3",
        ),
        ("profiles: {a: {min_ratio: [0.2]}}", r"profiles.a.min_ratio: got \[0.2\], allowed: a list of 3 values"),
        ("profiles: {a: {decode: {na: 0}}}", "profiles.a.decode.na: got 0, allowed: an integer from 1 to 4"),
        ("{min_na: 2, profiles: {a: {na: 1}}}", "profiles.a.na: got 1, allowed: an integer from 2 to 4"),
    ],
)
def test_profiles_are_checked_on_the_model(tmp_path: Path, text: str, message: str) -> None:
    policy = Policy.load(write(tmp_path, text))
    with pytest.raises(PolicyError, match=message):
        policy.check(SMALL)


def test_with_default() -> None:
    policy = Policy.builtin().with_default("fast")
    assert policy.default == "fast"
    with pytest.raises(PolicyError, match="default: got 'slow'"):
        policy.with_default("slow")


def test_a_policy_does_not_change() -> None:
    with pytest.raises(ValidationError):
        Policy().min_na = 3  # type: ignore[misc]


CONSOLIDATING = """
profiles:
  together: {na: 4, consolidate: true}
  close:    {prefill: {na: 3}, decode: {layers: [4, 3, 2], consolidate: 2}}
consolidation: {k0: 3, max_experts: 8, min_share: 0.1}
"""


def test_profiles_that_consolidate(tmp_path: Path) -> None:
    policy = Policy.load(write(tmp_path, CONSOLIDATING))
    policy.check(SMALL)
    assert policy.consolidation is not None
    assert (policy.consolidation.max_batch, policy.consolidation.allow_custom) == (64, False)
    assert policy.profile("together") == PhasedSchedule(SkipSchedule(na=4), SkipSchedule(na=4, consolidate=3))
    assert policy.profile("close").decode == SkipSchedule(layers=(4, 3, 2), consolidate=2)
    assert Policy.from_object(policy.model_dump()) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profiles: {a: {na: 4, consolidate: 2}}", "profiles.a.consolidate: got 2, allowed: only in a policy with"),
        ("profiles: {a: {na: 4, consolidate: true}}", "profiles.a.consolidate: got True, allowed: only in a policy"),
        ("profiles: {a: {na: 4, consolidate: 0}}", "profiles.a.consolidate: got 0, allowed: an integer from 1"),
        ("profiles: {a: {na: 4, consolidate: false}}", "profiles.a.consolidate: got False, allowed: an integer"),
        ("profiles: {a: {na: 4, consolidate: 1.5}}", "profiles.a.consolidate: got 1.5"),
        (
            "profiles: {a: {top_p: 0.5, consolidate: 2}}",
            "profiles.a.consolidate: got 2, allowed: only together with na",
        ),
        (
            "profiles: {a: {prefill: {na: 4, consolidate: 2}}}",
            "profiles.a.prefill.consolidate: got 2, allowed: only in decode",
        ),
        ("consolidation: {max_batch: 513}", "consolidation.max_batch: got 513"),
        ("consolidation: {max_experts: 0}", "consolidation.max_experts: got 0"),
        ("consolidation: {min_share: 1.5}", "consolidation.min_share: got 1.5"),
    ],
)
def test_consolidation_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load(write(tmp_path, text))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("rule", "field"),
    [("{na: 4, consolidate: 1}", "profiles.a"), ("{decode: {na: 4, consolidate: true}}", "profiles.a.decode")],
)
def test_own_experts_are_no_fewer_than_the_policys_floor(tmp_path: Path, rule: str, field: str) -> None:
    policy = Policy.load(write(tmp_path, f"{{min_na: 2, consolidation: {{k0: 1}}, profiles: {{a: {rule}}}}}"))
    with pytest.raises(PolicyError, match=f"{field}.consolidate: got 1, allowed: an integer from 2 to 4"):
        policy.check(SMALL)


def test_levels_of_an_auto_profile_may_consolidate() -> None:
    auto = {"auto": {"levels": ["full", "together"], "speedup": {"together": {1: 1.0, 8: 1.4}}}}
    content = {"profiles": {"together": {"na": 4, "consolidate": True}, "a": auto}, "consolidation": {"k0": 2}}
    policy = Policy.from_object(content)
    policy.check(SMALL)
    assert [level.consolidate for level in policy.autos["a"].levels] == [None, 2]
    assert Policy.from_object(policy.model_dump()) == policy
    auto["auto"] = {"levels": ["full", "together"], "machine": {"read_gb_s": 50, "peak_tflops": 1}}
    with pytest.raises(PolicyError, match=r"auto\.speedup: got None, allowed: curves: what together keeps depends"):
        Policy.from_object(content)
