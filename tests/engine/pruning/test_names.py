"""Which tensors of a checkpoint a plan is about."""

from __future__ import annotations

import pytest

from sglang_moe_opt.engine.pruning.names import is_kept, missing_tensors
from tests.engine.pruning.small_checkpoint import tensors

PLAN = {1: (0, 3), 2: (1, 2, 7)}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("model.layers.1.mlp.experts.3.down_proj.weight", True),
        ("model.layers.1.mlp.experts.30.down_proj.weight", False),
        ("model.layers.1.mlp.experts.2.down_proj.weight", False),
        ("model.layers.1.mlp.experts.2.down_proj.weight_scale_inv", False),
        ("model.layers.2.mlp.experts.2.w1.input_scale", True),
        ("model.layers.61.mlp.experts.2.down_proj.weight", True),  # a prediction layer, which no plan names
        ("base_model.model.model.layers.1.mlp.experts.2.down_proj.lora_A.weight", True),
        ("model.layers.1.mlp.shared_experts.down_proj.weight", True),
        ("model.layers.1.mlp.gate.weight", True),
        ("lm_head.weight", True),
    ],
)
def test_tensors_of_removed_experts_are_left_out(name: str, kept: bool) -> None:
    assert is_kept(PLAN, name) is kept


def test_a_whole_checkpoint_lacks_nothing() -> None:
    assert list(missing_tensors(PLAN, tensors())) == []


@pytest.mark.parametrize(
    "lacking",
    [
        "model.layers.2.mlp.experts.7.up_proj.weight",
        "model.layers.1.mlp.gate.weight",
    ],
)
def test_what_is_missing_is_named(lacking: str) -> None:
    assert list(missing_tensors(PLAN, (name for name in tensors() if name != lacking))) == [lacking]


def test_removed_experts_may_be_missing() -> None:
    assert list(missing_tensors(PLAN, (name for name in tensors() if is_kept(PLAN, name)))) == []


def test_experts_stored_in_one_tensor_are_not_found_one_by_one() -> None:
    names = ["model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.gate.weight"]
    assert list(missing_tensors({1: (0, 3)}, names)) == [f"model.layers.1.mlp.experts.{expert}" for expert in (0, 3)]
