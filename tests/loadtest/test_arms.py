"""Which curves are drawn, and what they are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval.endpoint import EndpointError
from eval.plans import NamedPlan
from eval.served import ServedModel
from loadtest.arms import WHOLE, build_arms, parse_curves
from loadtest.folder import ArmEntry
from loadtest.target import Target
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.curve import Consolidated
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.shapes import ShapeSpec


def served_under(name: str) -> ServedModel:
    """What a server says that keeps half of the experts of a small shape."""
    config = ShapeSpec.parse("tiny-v2@3").config("float32")
    experts = int(config["n_routed_experts"])
    plan = PrunePlan(model="0" * 32, num_experts=experts, layers=dict.fromkeys((1, 2), tuple(range(experts // 2))))
    return ServedModel(
        "http://half", "m", "m", "m", "auto", 512, config, "builtin", NamedPlan(name, Path("half.json"), plan)
    )


def test_every_plan_meets_every_profile_and_its_name_stands_for_the_first() -> None:
    found = parse_curves("full,na=2", ["full=50,na=1=50"], ["half", "quarter"], ["llama.cpp"])
    assert [(curve.label, curve.server) for curve in found] == [
        ("full", WHOLE),
        ("na=2", WHOLE),
        ("full:50+na=1:50", WHOLE),
        ("half", "half"),
        ("half/na=2", "half"),
        ("quarter", "quarter"),
        ("quarter/na=2", "quarter"),
        ("llama.cpp", "llama.cpp"),
    ]
    assert [[profile.label for profile, _ in curve.mix] for curve in found[3:6]] == [["full"], ["na=2"], ["full"]]


@pytest.mark.parametrize(
    ("plans", "others"), [(["full"], []), (["na=2"], []), (["half"], ["half"]), (["half", "half_na=2"], [])]
)
def test_a_label_that_is_there_twice_is_refused(plans: list[str], others: list[str]) -> None:
    with pytest.raises(FieldError, match=r"curves: got .* each label once"):
        parse_curves("full,na=2", [], plans, others)


def test_a_server_is_known_by_the_name_that_its_plan_has_here() -> None:
    served = served_under("as-the-server-calls-it")
    assert served.plan is not None
    half = Target(served.url, "generate", "", served)
    mine = replace(served.plan, name="mine")
    arms = build_arms(parse_curves("full,na=2", [], [], []), {WHOLE: half.known_under(mine)})
    assert [arm.plan and (arm.plan.name, arm.plan.share) for arm in arms] == [("mine", 0.5)] * 2
    other = replace(mine, plan=mine.plan.model_copy(update={"model": "1" * 32}))
    for wanted in (other, None):
        with pytest.raises(EndpointError, match="http://half: serves the model under the plan"):
            half.known_under(wanted)


def test_an_arm_is_asked_at_its_own_server() -> None:
    servers = {name: Target(f"http://{name or 'whole'}", "generate", "", None) for name in (WHOLE, "half", "other")}
    servers["half"] = replace(servers["half"], served=served_under("as-the-server-calls-it"))
    arms = build_arms(parse_curves("full,na=2", [], ["half"], ["other"]), servers)
    assert [arm.label for arm in arms] == ["full", "na=2", "half", "half/na=2", "other"]
    assert [arm.url for arm in arms] == ["http://whole"] * 2 + ["http://half"] * 2 + ["http://other"]
    assert [arm.plan and arm.plan.name for arm in arms] == [None, None, *["as-the-server-calls-it"] * 2, None]
    assert [arm.is_baseline_server for arm in arms] == [False] * 4 + [True]
    assert arms[3].hints == {"na=2": ({"na": 2}, 1.0)}
    assert arms[4].hints == {"other": (None, 1.0)}


def test_an_auto_profile_has_no_mean_na_of_its_own(tmp_path: Path) -> None:
    rule = "{levels: [full, fast], speedup: {fast: {1: 2}}}"
    (tmp_path / "policy.yaml").write_text(f"profiles: {{fast: {{na: 2}}, auto: {{auto: {rule}}}}}")
    served = served_under("half")
    target = Target(served.url, "generate", "", served)
    wanted = parse_curves("full,fast,auto", ["auto=50,fast=50"], [], [])
    arms = build_arms(wanted, {WHOLE: target}, tmp_path / "policy.yaml")
    assert [arm.mean_na for arm in arms] == [served.shape.top_k, 2, None, None]
    assert arms[2].hints == {"auto": ("auto", 1.0)}


def test_what_consolidates_is_known_by_its_own_experts(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "profiles: {own1: {na: 4, consolidate: 1}, two: {na: 2}}\nconsolidation: {max_batch: 32, max_experts: 5}"
    )
    served = served_under("half")
    wanted = parse_curves("full,own1", ["own1=1,two=1", "own1=1,full=1"], [], [])
    arms = build_arms(wanted, {WHOLE: Target(served.url, "generate", "", served)}, tmp_path / "policy.yaml")
    assert [arm.consolidated for arm in arms] == [None, Consolidated(1, 5, 32), None, None]
    assert [arm.mean_na is None for arm in arms] == [False, False, True, True], "no one number says what a mix reads"
    assert ArmEntry.model_validate_json(arms[1].model_dump_json()) == arms[1]
