"""Plans of an evaluation: names, checks before anything starts, and what results record."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.plans import load_plans, under
from eval.results import PlanEntry, ScheduleEntry
from eval.schedules import check_labels, parse_profiles, resolve_all
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.policy import Policy
from tests.eval.small_data import CHECKPOINT, weightless_model, write_odd_plan


@pytest.fixture
def model() -> Path:
    if not (CHECKPOINT / "model.safetensors").exists():
        pytest.skip(f"no trained checkpoint at {CHECKPOINT}")
    return CHECKPOINT


@pytest.fixture
def half(model: Path, tmp_path: Path) -> Path:
    return write_odd_plan(model, tmp_path / "half.json")


def load(options: list[str], model: Path) -> list[str]:
    return [plan.name for plan in load_plans(options, str(model), MoEShape.from_path(model))]


def test_a_name_is_given_or_the_files(model: Path, half: Path) -> None:
    assert load([str(half), f"odd-32={half}", f"x={half}"], model) == ["half", "odd-32", "x"]
    other = half.with_name("keep=32.json")
    other.write_bytes(half.read_bytes())
    with pytest.raises(FieldError, match="got 'keep=32'"):  # the file is found, its stem is no name
        load([str(other)], model)
    assert load([f"b={other}"], model) == ["b"]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [(("a", "a"), "got 'a', allowed: each name once"), (("full",), "other than full"), (("a b",), "got 'a b'")],
)
def test_names_tell_plans_apart(model: Path, half: Path, names: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(FieldError, match=complaint):
        load([f"{name}={half}" for name in names], model)


def test_a_plan_must_fit_the_model(model: Path, half: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json"):
        load([str(tmp_path / "none.json")], model)
    half.write_text(half.read_text().replace('"num_experts": 64', '"num_experts": 128'))
    with pytest.raises(ValueError, match=r"half\.json: num_experts: got 128"):
        load([str(half)], model)
    other = PrunePlan(model="0" * 32, num_experts=64, layers={1: (0, 1)})
    other.save(half)
    with pytest.raises(ValueError, match="the fingerprint of the model in use"):
        load([str(half)], model)


def test_an_exported_checkpoint_is_no_whole_model(model: Path, half: Path, tmp_path: Path) -> None:
    folder = weightless_model(tmp_path / "exported")
    (folder / "moe_prune_plan.json").write_bytes(half.read_bytes())
    with pytest.raises(FieldError, match=r"moe_prune_plan\.json prunes it already"):
        load([str(half)], folder)


def test_a_policy_with_a_plan_leaves_no_whole_model(model: Path, half: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("prune_plan: half.json\n")
    shape = MoEShape.from_path(model)
    with pytest.raises(FieldError, match=r"half\.json prunes it already"):
        load_plans([str(half)], str(model), shape, str(policy))
    assert load_plans([], str(model), shape, str(policy)) == ()


def test_a_layer_keeps_as_many_experts_as_a_token_is_routed_to(model: Path, half: Path) -> None:
    plan = PrunePlan.load(half)
    plan.model_copy(update={"layers": dict.fromkeys(plan.layers, (0, 1))}).save(half)
    with pytest.raises(ValueError, match=r"half\.json: .*at least top-k"):
        load([str(half)], model)


def test_what_results_record(model: Path, half: Path) -> None:
    shape = MoEShape.from_path(model)
    (plan,) = load_plans([f"odd-32={half}"], str(model), shape)
    entry = plan.entry(shape)
    assert (entry.name, entry.num_experts, entry.kept) == ("odd-32", 64, [32] * 5)
    assert entry.digest == plan.plan.digest
    assert (entry.mean_kept, entry.share) == (32, 0.5)
    assert entry.whole_expert_bytes == 5 * 64 * 3 * shape.hidden_size * shape.moe_intermediate_size * 2
    assert entry.method == {"criterion": "odd"}
    schedules = under(entry, resolve_all(parse_profiles("full,na=4"), Policy.builtin(), shape))
    assert [s.label for s in schedules] == ["odd-32", "odd-32/na=4"]
    assert [s.hint for s in schedules] == ["full", {"na": 4}]
    assert all(s.plan == entry for s in schedules)
    assert ScheduleEntry.model_validate_json(schedules[0].model_dump_json()) == schedules[0]


def test_a_schedule_of_an_older_run_is_of_the_whole_model() -> None:
    assert ScheduleEntry.model_validate({"label": "a", "hint": "full", "mean_na": 6, "layers": [6]}).plan is None


def test_labels_have_folders_of_their_own() -> None:
    def entries(*labels: str) -> list[ScheduleEntry]:
        return [ScheduleEntry(label=label, hint="full", mean_na=6, layers=[6]) for label in labels]

    check_labels(entries("a", "a/na=4", "a/na=3"))
    for labels in (("a", "a"), ("a/na=4", "a_na=4")):
        with pytest.raises(FieldError, match="each label once"):
            check_labels(entries(*labels))


def test_shares_come_from_bytes() -> None:
    plan = PlanEntry(name="a", digest="0", num_experts=8, kept=[8, 4], expert_bytes=120, whole_expert_bytes=160)
    assert (plan.mean_kept, plan.share) == (6, 0.75)
