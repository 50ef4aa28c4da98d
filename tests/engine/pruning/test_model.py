"""Layers are built with as many experts as the plan keeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_moe_opt.engine.pruning.ids import slots_of
from sglang_moe_opt.engine.pruning.model import gate_init, moe_init
from sglang_moe_opt.engine.settings import PRUNE_ENV
from tests.engine.pruning.small_checkpoint import EXPERTS, config, write_plan

EQUAL = {1: (0, 3, 4, 6), 2: (0, 1, 2, 3, 4, 5, 6, 7)}
UNEQUAL = {1: (0, 1, 2, 5, 6), 2: (0, 1, 2, 3, 4, 5, 6, 7)}


def whole_config() -> SimpleNamespace:
    content = config(n_group=2, topk_group=1)
    return SimpleNamespace(**content, to_dict=lambda: content)


class Layer:
    """What ``DeepseekV2MoE.__init__`` makes of its config, as far as pruning sees it."""

    def __init__(self, whole: SimpleNamespace, layer_id: int, *, bias: bool = True) -> None:
        def build(moe: Layer, config: Any, layer: int, **kwargs: Any) -> None:
            assert kwargs == {"prefix": "mlp"}
            moe.experts = config.n_routed_experts
            moe.num_fused_shared_experts = 0
            moe.topk = SimpleNamespace(topk_config=SimpleNamespace(output_format=None, runner_backend=None))
            moe.gate = torch.nn.Module()
            moe.gate.e_score_correction_bias = torch.zeros(1) if bias else None
            gate_init(lambda gate, config: setattr(moe, "gate_rows", config.n_routed_experts), moe.gate, config)

        moe_init(build, self, whole, layer_id, prefix="mlp")


@pytest.mark.parametrize(("layers", "experts", "rows"), [(EQUAL, 4, 4), (UNEQUAL, 5, EXPERTS)], ids=["shrink", "mask"])
def test_a_layer_has_its_own_number_of_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: Any, experts: int, rows: int
) -> None:
    whole = whole_config()
    write_plan(tmp_path / "plan.json", layers)
    monkeypatch.setenv(PRUNE_ENV, str(tmp_path / "plan.json"))
    pruned, other, dense = (Layer(whole, layer) for layer in (1, 2, 0))
    assert (pruned.experts, pruned.gate_rows) == (experts, rows)
    assert (other.experts, other.gate_rows) == (dense.experts, dense.gate_rows) == (EXPERTS, EXPERTS)
    assert whole.n_routed_experts == EXPERTS
    assert (slots_of(pruned.topk.topk_config) is None) == (layers is EQUAL)


def test_a_masked_router_without_a_bias_masks_its_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(tmp_path / "plan.json", UNEQUAL)
    monkeypatch.setenv(PRUNE_ENV, str(tmp_path / "plan.json"))
    for bias, hooks in ((True, 0), (False, 1)):
        layer = Layer(whole_config(), 1, bias=bias)
        assert len(layer.gate._forward_hooks) == hooks
    (hook,) = layer.gate._forward_hooks.values()
    logits = hook(layer.gate, None, torch.zeros(2, EXPERTS))
    assert logits[0].isneginf().nonzero().flatten().tolist() == [3, 4, 7]


def test_without_a_plan_nothing_changes() -> None:
    whole = whole_config()
    assert Layer(whole, 1).experts == EXPERTS
