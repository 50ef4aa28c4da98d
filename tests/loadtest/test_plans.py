"""Plans on the command line of a load test: names, and what is refused before a server starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.plans import check_plans, parse_plans
from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.plan import PrunePlan


@pytest.fixture(scope="module")
def model(project_root: Path) -> Path:
    return project_root / "eval" / "reference_models" / "checkpoints" / "mini-v2"


def write_plan(file: Path, model: Path, kept: int = 32, identity: str | None = None) -> Path:
    """The first layer keeps two experts more."""
    shape = MoEShape.from_path(model)
    layers = {layer: tuple(range(kept)) for layer in shape.moe_layer_ids}
    layers[shape.moe_layer_ids[0]] = tuple(range(kept + 2))
    identity = identity or fingerprint(read_config(model), model)
    PrunePlan(model=identity, num_experts=shape.num_experts, layers=layers).save(file)
    return file


def test_a_plan_has_the_name_that_it_is_given_or_that_of_its_file() -> None:
    found = parse_plans(["half=plans/a.json", "plans/quarter.json", "plans/k=8.json", "x=k=8.json"])
    assert found == {
        "half": Path("plans/a.json"),
        "quarter": Path("plans/quarter.json"),
        "k=8": Path("plans/k=8.json"),
        "x": Path("k=8.json"),
    }


@pytest.mark.parametrize("texts", [["a=x.json", "a=y.json"], ["x.json", "plans/x.json"], ["=x.json"], ["a="], [""]])
def test_names_are_there_once(texts: list[str]) -> None:
    with pytest.raises(FieldError, match="--prune-plan: got"):
        parse_plans(texts)


def test_reports_get_what_is_left_of_each_layer(model: Path, tmp_path: Path) -> None:
    shape = MoEShape.from_path(model)
    found = check_plans({"half": write_plan(tmp_path / "p.json", model)}, str(model), "builtin")["half"]
    layers = shape.num_moe_layers
    assert found.file == tmp_path / "p.json"
    assert found.entry.kept == (34, *[32] * (layers - 1))
    assert found.entry.kept_bytes == (32 * layers + 2) * shape.expert_bytes
    assert found.entry.full_bytes == 64 * layers * shape.expert_bytes
    assert found.entry.digest == PrunePlan.load(found.file).digest


def test_a_plan_that_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    other = write_plan(tmp_path / "other.json", model, identity="0" * 32)
    few = write_plan(tmp_path / "few.json", model, kept=2)
    for file, message in ((other, "fingerprint"), (few, "at least top-k"), (tmp_path / "none.json", "a readable file")):
        with pytest.raises(ValueError, match=message) as refused:
            check_plans({"half": file}, str(model), "builtin")
        assert str(file) in str(refused.value)


def test_a_policy_with_a_plan_leaves_no_whole_model_to_compare_with(model: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "p.json", model)
    policy = tmp_path / "policy.yaml"
    policy.write_text("prune_plan: p.json\n")
    with pytest.raises(FieldError, match=r"p\.json prunes it already"):
        check_plans({"half": plan}, str(model), str(policy))
    assert check_plans({}, str(model), str(policy)) == {}
