"""The plans that come with the mini models are whole and theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.pruning.checkpoint import Checkpoint


@pytest.mark.parametrize("name", ["mini-v2", "mini-v3"])
def test_half_of_the_experts_with_weights_of_their_own(project_root: Path, name: str) -> None:
    models = project_root / "eval" / "reference_models"
    checkpoint, file = models / "checkpoints" / name, models / "plans" / f"{name}-half.json"
    plan = PrunePlan.load(file)
    plan.check(MoEShape.from_path(checkpoint), fingerprint(read_config(checkpoint), checkpoint))
    assert {len(kept) for kept in plan.layers.values()} == {32}
    weights = plan.weights_path(file)
    assert weights is not None
    replaced = Checkpoint.open(checkpoint).replaced(weights)
    own = [tensor for tensor in replaced.tensors.values() if tensor.file == weights]
    assert len(own) == 5 * (32 * 3 + 3 + 1)
    for entry in (plan.provenance["command"], *plan.provenance["refined"]):
        assert entry[0] == "moe-opt"
        assert not any(argument.startswith("/") for argument in entry)
