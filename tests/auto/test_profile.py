"""What a policy file may say of an auto profile, and what requests may ask of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.auto import AutoProfile
from sglang_moe_opt.hints import HintError, ResolvedHint, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy, PolicyError
from sglang_moe_opt.schedule import PhasedSchedule, SkipSchedule
from sglang_moe_opt.shapes import ShapeSpec

SHAPE = MoEShape.from_config(ShapeSpec.parse("deepseek-v2-lite@5").config())
RULE: dict[str, Any] = {
    "levels": ["full", "balanced", "fast"],
    "speedup": {"balanced": {1: 1.2, 64: 1.11}, "fast": {64: 1.13, 1: 1.5}},
}
PROFILES: dict[str, Any] = {
    "balanced": {"na": 4},
    "fast": {"na": 2},
    "adaptive": {"min_ratio": 0.2},
    "thrifty": {"prefill": "full", "decode": {"na": 1}},
}


def policy(rule: object = None, **more: Any) -> Policy:
    return Policy.from_object({"profiles": {"auto": {"auto": RULE if rule is None else rule}, **PROFILES}, **more})


def changed(**more: Any) -> dict[str, Any]:
    return {name: value for name, value in {**RULE, **more}.items() if value is not ...}


def test_levels_and_defaults() -> None:
    found = policy()
    assert found.names[:2] == ("full", "auto")  # in the file's order, though levels come behind
    auto = found.autos["auto"]
    assert auto.levels == (SkipSchedule(), SkipSchedule(na=4), SkipSchedule(na=2))
    assert auto.prefill == auto.decode == SkipSchedule()
    assert (auto.rule.min_gain, auto.rule.hold_steps) == (1.03, 8)
    assert auto.rule.speedup == (((1, 1.0),), ((1, 1.2), (64, 1.11)), ((1, 1.5), (64, 1.13)))
    found.check(SHAPE)
    assert [auto.speed_model(SHAPE, 1).best(tokens, tokens, 1.03) for tokens in (1, 64)] == [2, 1]


def test_it_may_be_the_default_and_any_profiles_decode_side_a_level() -> None:
    rule = changed(levels=["balanced", "thrifty"], speedup={"balanced": {1: 1.1}, "thrifty": {1: 2}}, prefill="fast")
    found = policy(rule, default="auto")
    auto = found.autos["auto"]
    assert auto.levels == (SkipSchedule(na=4), SkipSchedule(na=1))
    assert auto.prefill == SkipSchedule(na=2)
    assert policy(changed(prefill={"na": 3})).autos["auto"].prefill == SkipSchedule(na=3)
    hint = resolve(None, found, SHAPE)
    assert hint.profile == "auto" and [table.mean_na for table in hint.levels] == [4, 1]


@pytest.mark.parametrize(
    "rule", [RULE, changed(speedup=None, machine={"read_gb_s": 40, "peak_tflops": 1.5}, context=64, prefill="fast")]
)
def test_dump_and_parse_agree(rule: dict[str, Any]) -> None:
    auto = {**rule, "min_gain": 1.1, "hold_steps": 3}
    found = Policy.from_object({"profiles": {"auto": {"auto": auto}, "balanced": {"na": 4}, "fast": {"na": 2}}})
    assert Policy.from_object(found.model_dump()) == found
    assert json.loads(json.dumps(found.model_dump()["profiles"]["auto"]["auto"]["levels"])) == RULE["levels"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (3, "profiles.auto.auto: got 3, allowed: an object with the keys levels"),
        ({}, "profiles.auto.auto.levels: got None, allowed: a list of 2 to 16 profiles"),
        (changed(levels=["fast"]), "profiles.auto.auto.levels: got ['fast'], allowed: a list of 2"),
        (changed(levels=["full", "slow"]), "profiles.auto.auto.levels[1]: got 'slow', allowed: the profiles"),
        (changed(levels=["full", "auto"]), "profiles.auto.auto.levels[1]: got 'auto'"),
        (changed(levels=["full", "fast", "fast"]), "profiles.auto.auto.levels: got ["),
        (changed(floor="fast"), "profiles.auto.auto: got 'floor', allowed: the keys levels"),
        (changed(speedup=...), "profiles.auto.auto.speedup: got None, allowed: curves, a load test's summary.json, or"),
        (changed(speedup={"fast": {1: 2}}), "profiles.auto.auto.speedup: got ['fast'], allowed: a curve for every"),
        (changed(speedup={**RULE["speedup"], "slow": {1: 2}}), "profiles.auto.auto.speedup: got 'slow', allowed: the"),
        (changed(speedup={**RULE["speedup"], "fast": {}}), "profiles.auto.auto.speedup.fast: got {}"),
        (changed(speedup={**RULE["speedup"], "fast": {"1": 2}}), "profiles.auto.auto.speedup.fast: got '1'"),
        (changed(speedup={**RULE["speedup"], "fast": {1: 0}}), "profiles.auto.auto.speedup.fast.1: got 0, allowed"),
        (changed(speedup={**RULE["speedup"], "fast": {1: True}}), "profiles.auto.auto.speedup.fast.1: got True"),
        (changed(speedup=[1]), "profiles.auto.auto.speedup: got [1]"),
        (changed(speedup="absent.json"), "profiles.auto.auto.speedup: got 'absent.json', allowed: a summary.json"),
        (changed(speedup=..., machine=5), "profiles.auto.auto.machine: got 5"),
        (changed(speedup=..., machine={"read_gb_s": 4}), "profiles.auto.auto.machine.peak_tflops: got None"),
        (changed(min_gain=0.9), "profiles.auto.auto.min_gain: got 0.9"),
        (changed(hold_steps=0), "profiles.auto.auto.hold_steps: got 0"),
        (changed(prefill="slow"), "profiles.auto.auto.prefill: got 'slow'"),
        (changed(prefill={"na": "x"}), "profiles.auto.auto.prefill.na: got 'x'"),
        (
            {"levels": ["full", "adaptive"], "machine": {"read_gb_s": 4, "peak_tflops": 1}},
            "profiles.auto.auto.speedup: got None, allowed: curves: what adaptive keeps",
        ),
    ],
)
def test_a_bad_rule_fails_in_one_line(rule: object, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy(rule)
    assert str(caught.value).startswith(message)


def test_other_keys_beside_auto_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"profiles\.auto: got 'na', allowed: the keys auto"):
        Policy.from_object({"profiles": {"auto": {"auto": RULE, "na": 2}, **PROFILES}})
    with pytest.raises(PolicyError, match=r"profiles\.a\.decode: got 'auto'"):
        Policy.from_object({"profiles": {"a": {"decode": {"auto": RULE}}, **PROFILES}})


def test_levels_in_the_wrong_order_are_refused_on_the_model() -> None:
    wrong = policy(changed(levels=["fast", "balanced"]))
    with pytest.raises(PolicyError, match=r"profiles.auto.auto.levels: got .*balanced computes 4 experts after 2"):
        wrong.check(SHAPE)


def test_a_summarys_path_starts_at_the_policy_file(project_root: Path, tmp_path: Path) -> None:
    source = project_root / "docs/results/loadtest_v2_lite/summary.json"
    (tmp_path / "measured.json").write_bytes(source.read_bytes())
    rule = changed(speedup="measured.json")
    (tmp_path / "policy.yaml").write_text(json.dumps({"profiles": {"auto": {"auto": rule}, **PROFILES}}))
    auto = Policy.load(tmp_path / "policy.yaml").autos["auto"]
    assert auto.rule.speedup is not None and len(auto.rule.speedup[2]) == 17


# --- hints ---


def test_the_name_resolves_to_prefill_and_levels() -> None:
    hint = resolve("auto", policy(), SHAPE)
    assert hint.prefill.is_full and hint.decode.is_full
    assert not hint.is_full and not hint.is_one_schedule and hint.is_dynamic and not hint.is_custom
    assert hint.mean_na == 6.0  # an upper bound
    assert [table.mean_na for table in hint.levels] == [6, 4, 2]
    assert resolve({"profile": "auto"}, policy(), SHAPE) == hint


def test_the_floor_holds_for_magnitude_levels() -> None:
    rule = {"levels": ["full", "adaptive"], "speedup": {"adaptive": {1: 1.2}}}
    hint = resolve("auto", policy(rule, min_na=1).model_copy(update={"min_na": 3}), SHAPE)
    assert hint.levels[1].min_na.tolist() == [3] * 4


def test_other_hints_never_have_levels() -> None:
    for value in ("full", "fast", {"na": 2}, {"prefill": "fast", "decode": {"na": 1}}):
        assert resolve(value, policy(), SHAPE).levels == ()


@pytest.mark.parametrize("prefill", ["full", "fast"])
def test_the_scheduler_gets_the_same_hint(prefill: str) -> None:
    hint = resolve("auto", policy(changed(prefill=prefill)), SHAPE)
    assert ResolvedHint.from_wire(hint.to_wire(), SHAPE) == hint


def test_the_scheduler_gets_the_same_choice() -> None:
    """Also of a predicted profile: the other process knows no policy."""
    machine = {"read_gb_s": 2000, "peak_tflops": 600}
    for rule in (RULE, changed(speedup=..., machine=machine, context=77, min_gain=1.2, hold_steps=3)):
        found = policy(rule)
        arrived = ResolvedHint.from_wire(resolve("auto", found, SHAPE).to_wire(), SHAPE).schedule
        assert isinstance(arrived, AutoProfile)
        assert arrived.rule == found.autos["auto"].rule
        assert arrived.speed_model(SHAPE, 0) == found.autos["auto"].speed_model(SHAPE, found.min_na)


@pytest.mark.parametrize("levels", [3, [], [3] * 3, [{}], [{"na": "x"}] * 3, [[]] * 3])
def test_wires_that_nobody_wrote(levels: object) -> None:
    wire = json.dumps({**json.loads(resolve("auto", policy(), SHAPE).to_wire()), "levels": levels})
    with pytest.raises(HintError, match=r"wire\.levels"):
        ResolvedHint.from_wire(wire, SHAPE)


@pytest.mark.parametrize(
    ("hint", "field"),
    [
        ({"auto": RULE}, "custom_params.moe_skip.auto"),
        ({"auto": {}, "na": 2}, "custom_params.moe_skip.auto"),
        ({"decode": {"auto": RULE}}, "custom_params.moe_skip.decode.auto"),
        ({"decode": "auto"}, "custom_params.moe_skip.decode"),
        ({"prefill": "auto", "decode": {"na": 2}}, "custom_params.moe_skip.prefill"),
        ({"prefill": {"profile": "auto"}}, "custom_params.moe_skip.prefill"),
    ],
)
def test_requests_bring_no_auto_rule_of_their_own(hint: object, field: str) -> None:
    with pytest.raises(HintError) as caught:
        resolve(hint, policy(), SHAPE)
    assert (caught.value.field, caught.value.status) == (field, 400)


def test_beside_an_auto_default_a_hint_says_what_decodes() -> None:
    found = policy(default="auto")
    with pytest.raises(HintError, match=r"moe_skip\.decode: got None"):
        resolve({"prefill": {"na": 4}}, found, SHAPE)
    hint = resolve({"decode": {"na": 2}}, found, SHAPE)
    assert hint.prefill.is_full and hint.decode.mean_na == 2 and hint.levels == ()


def test_profiles_that_are_no_auto_stay_as_they_were() -> None:
    plain = policy().profile("thrifty")
    assert type(plain) is PhasedSchedule and not isinstance(plain, AutoProfile)
