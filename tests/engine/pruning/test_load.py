"""What the loader of a pruned model gets out of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_moe_opt.engine.pruning import load
from sglang_moe_opt.engine.pruning.load import complete, do_load_weights, safetensors_weights, select
from sglang_moe_opt.engine.settings import PRUNE_ENV
from sglang_moe_opt.plan import GateMode
from tests.engine.pruning.small_checkpoint import config, tensors, write_checkpoint, write_plan

KEPT = {1: (0, 3, 4), 2: (1, 2, 5, 7)}
WHOLE = tensors()


@pytest.fixture
def plan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plan in force."""
    write_plan(tmp_path / "plan.json", KEPT)
    monkeypatch.setenv(PRUNE_ENV, str(tmp_path / "plan.json"))
    return tmp_path / "plan.json"


def selected(tmp_path: Path, **arguments: Any) -> dict[str, Tensor]:
    return dict(select(write_plan(tmp_path / "plan.json", KEPT), WHOLE.items(), **arguments))


def test_kept_experts_are_renumbered_and_the_others_are_gone(tmp_path: Path) -> None:
    result = selected(tmp_path, mode="shrink")
    for layer, kept in KEPT.items():
        prefix = f"model.layers.{layer}.mlp.experts."
        assert {name.split(".")[5] for name in result if name.startswith(prefix)} == {str(i) for i in range(len(kept))}
        for slot, expert in enumerate(kept):
            for part in ("gate_proj", "up_proj", "down_proj"):
                assert result[f"{prefix}{slot}.{part}.weight"] is WHOLE[f"{prefix}{expert}.{part}.weight"]


def test_a_gate_shrinks_to_the_kept_rows(tmp_path: Path) -> None:
    result = selected(tmp_path, mode="shrink")
    for layer, kept in KEPT.items():
        for name in (f"model.layers.{layer}.mlp.gate.weight", f"model.layers.{layer}.mlp.gate.e_score_correction_bias"):
            assert torch.equal(result[name], WHOLE[name][list(kept)])


def test_a_masked_gate_keeps_its_rows_and_hides_removed_experts(tmp_path: Path) -> None:
    result = selected(tmp_path, mode="mask")
    for layer, kept in KEPT.items():
        prefix = f"model.layers.{layer}.mlp.gate."
        assert torch.equal(result[prefix + "weight"], WHOLE[prefix + "weight"])
        bias, whole = result[prefix + "e_score_correction_bias"], WHOLE[prefix + "e_score_correction_bias"]
        assert torch.equal(bias[list(kept)], whole[list(kept)])
        assert (bias.isneginf().nonzero().flatten().tolist()) == [e for e in range(8) if e not in kept]


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_a_checkpoint_written_under_the_plan_has_the_kept_rows_alone(tmp_path: Path, mode: GateMode) -> None:
    pruning = write_plan(tmp_path / "plan.json", KEPT)
    stored = {
        name: tensor[list(KEPT[int(name.split(".")[2])])] if ".gate." in name else tensor
        for name, tensor in WHOLE.items()
    }
    own, from_whole = (dict(select(pruning, weights.items(), mode)) for weights in (stored, WHOLE))
    assert own.keys() == from_whole.keys()
    for name, tensor in own.items():
        assert tensor.shape == from_whole[name].shape
        # in a masked gate the weights of removed experts do not matter
        rows = list(KEPT[int(name.split(".")[2])]) if mode == "mask" and name.endswith("gate.weight") else slice(None)
        assert torch.equal(tensor[rows], from_whole[name][rows]), name


def test_fused_shared_experts_follow_the_kept_ones(tmp_path: Path) -> None:
    result = selected(tmp_path, mode="shrink", num_fused_shared=1)
    assert not any("shared_experts" in name for name in result)
    for layer, kept in KEPT.items():
        mlp = f"model.layers.{layer}.mlp"
        whole = WHOLE[f"{mlp}.shared_experts.up_proj.weight"]
        assert result[f"{mlp}.experts.{len(kept)}.up_proj.weight"] is whole


def test_everything_else_passes(tmp_path: Path) -> None:
    result = selected(tmp_path, mode="shrink")
    for name, tensor in WHOLE.items():
        if ".experts." not in name and ".gate." not in name:
            assert result[name] is tensor


def test_sidecar_tensors_take_the_place_of_the_checkpoints(tmp_path: Path) -> None:
    expert, gate = "model.layers.2.mlp.experts.5.up_proj.weight", "model.layers.1.mlp.gate.weight"
    shared = "model.layers.2.mlp.shared_experts.down_proj.weight"
    replaced = {name: WHOLE[name] + 1 for name in (expert, gate, shared)}
    pruning = write_plan(tmp_path / "plan.json", KEPT, replaced=replaced)
    result = dict(select(pruning, WHOLE.items(), "shrink"))
    slot = "model.layers.2.mlp.experts.2.up_proj.weight"
    assert torch.equal(result[slot], replaced[expert])
    assert torch.equal(result[gate], replaced[gate][list(KEPT[1])])
    assert torch.equal(result[shared], replaced[shared])
    plain = selected(tmp_path, mode="shrink")
    changed = {name for name in plain if not torch.equal(plain[name], result[name])}
    assert changed == {slot, gate, shared}


def test_the_first_load_must_bring_every_kept_expert(tmp_path: Path, plan_file: Path) -> None:
    model = SimpleNamespace(
        config=SimpleNamespace(to_dict=lambda: config(n_group=1, topk_group=1)), num_fused_shared_experts=0
    )
    lacking = "model.layers.2.mlp.experts.7.up_proj.weight"
    part = [(name, tensor) for name, tensor in WHOLE.items() if name != lacking]
    (_, weights), _ = do_load_weights(model, part)
    with pytest.raises(ValueError, match=rf"no {lacking}, which {plan_file} keeps \(1 such tensors\)"):
        list(weights)
    (_, weights), _ = do_load_weights(model, part)  # later updates may bring a part
    assert len(list(weights)) == len(list(select(load.get_pruning(), part, "shrink")))  # type: ignore[arg-type]


def test_a_whole_checkpoint_is_complete(tmp_path: Path) -> None:
    pruning = write_plan(tmp_path / "plan.json", KEPT)
    assert dict(complete(pruning, WHOLE.items())) == WHOLE


def test_without_a_plan_the_loader_gets_what_it_was_given() -> None:
    given = iter(WHOLE.items())
    assert do_load_weights("model", given, is_nextn=True) == (("model", given), {"is_nextn": True})


# --- reading ---

weight_utils = pytest.importorskip("sglang.srt.model_loader.weight_utils")


def test_tensors_of_removed_experts_are_not_read(
    tmp_path: Path, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    files = sorted(map(str, folder.glob("*.safetensors")))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("upstream's reader takes every tensor")

    result = dict(safetensors_weights(refuse, files, disable_mmap=False, prefetch=False))
    expected = {
        name for name in WHOLE if ".experts." not in name or int(name.split(".")[5]) in KEPT[int(name.split(".")[2])]
    }
    assert result.keys() == expected
    assert all(torch.equal(result[name], WHOLE[name]) for name in result)


@pytest.mark.parametrize("flag", ["disable_mmap", "prefetch"])
def test_files_that_are_to_be_read_whole_are(tmp_path: Path, plan_file: Path, flag: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    files = sorted(map(str, folder.glob("*.safetensors")))
    assert (
        dict(safetensors_weights(weight_utils.safetensors_weights_iterator, files, **{flag: True})).keys()
        == WHOLE.keys()
    )


def test_without_a_plan_upstream_reads() -> None:
    assert safetensors_weights(lambda *args, **kwargs: (args, kwargs), ["a"], 1, x=2) == ((["a"], 1), {"x": 2})  # type: ignore[comparison-overlap, arg-type, return-value]
