"""A pruned model's log-probabilities, layer by layer: as transformers computes its exported checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.exact import pruned_logprobs, whole_logprobs
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.pruning.export import Export
from tests.pruning.export_models import EXPERTS, UNIFORM, load, make_model, make_plan

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58, 9, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("exact") / "model")


def test_all_experts_are_the_whole_model(model: Path, tmp_path: Path) -> None:
    plan = PrunePlan.load(make_plan(model, dict.fromkeys(UNIFORM, tuple(range(EXPERTS))), tmp_path / "plan.json"))
    values = pruned_logprobs(model, plan, None, IDS)
    assert len(values) == len(IDS) - 1
    assert values == pytest.approx(whole_logprobs(model, IDS), abs=1e-3)


@pytest.mark.parametrize("replaces", [False, True])
def test_a_plan_is_its_exported_checkpoint(model: Path, tmp_path: Path, replaces: bool) -> None:
    name = "model.layers.2.mlp.experts.5.down_proj.weight"
    file = make_plan(model, UNIFORM, tmp_path / "plan.json", {name: -load(model)[name]} if replaces else None)
    Export.prepare(model, file, tmp_path / "small").write()
    plan = PrunePlan.load(file)
    values = pruned_logprobs(model, plan, plan.weights_path(file), IDS)
    assert values == pytest.approx(whole_logprobs(tmp_path / "small", IDS), abs=1e-3)
    assert values != pytest.approx(whole_logprobs(model, IDS), abs=0.1)
