"""The policy file: what it may say, and the one line it fails with."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy, PolicyError
from sglang_moe_opt.schedule import PhasedSchedule, SkipSchedule

V2_LITE = MoEShape(27, tuple(range(1, 27)), 6, 64, 2, False, "softmax")
SMALL = MoEShape(4, (1, 2, 3), 4, 8, 0, True, "softmax")

DESIGN = """
profiles:
  balanced: {schedule: [6, 4, 2, 26]}
  fast:     {na: 2}
  adaptive: {min_ratio: 0.2, min_na: 2}
  split:    {prefill: full, decode: {na: 2}}
  late:     {decode: {top_p: 0.9}}
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
    assert policy.names == ("full", "balanced", "fast", "adaptive", "split", "late")
    assert policy.profile("balanced").decode == SkipSchedule(schedule=(6, 4, 2, 26))
    assert policy.profile("split") == PhasedSchedule(SkipSchedule(), SkipSchedule(na=2))
    assert policy.profile("late").prefill == SkipSchedule()
    assert policy.profile("full") == PhasedSchedule.uniform(SkipSchedule())
    assert (policy.default, policy.allow_custom, policy.max_live_schedules) == ("balanced", False, 8)
    assert policy.consolidation is not None and policy.consolidation.max_batch == 64
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
