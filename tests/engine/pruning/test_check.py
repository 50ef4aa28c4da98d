"""What is refused before a model is loaded, each with one line that names the cause."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.engine import flags
from sglang_moe_opt.engine.pruning import Pruning, adopt_stored_plan, get_pruning
from sglang_moe_opt.engine.pruning.active import load_pruning
from sglang_moe_opt.engine.pruning.check import CHECKED_ENV, REFUSED, check_layout, check_once, check_plan, check_server
from sglang_moe_opt.engine.settings import PRUNE_ENV
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PLAN_FILE, PLAN_KEY, PlanError, PrunePlan
from tests.engine.pruning.small_checkpoint import EXPERTS, tensors, write_checkpoint, write_plan

server_args = pytest.importorskip("sglang.srt.server_args")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", n_group=1, topk_group=1)


@pytest.fixture
def pruning(tmp_path: Path, model: Path) -> Pruning:
    return write_plan(tmp_path / "plan.json", {1: (0, 3, 5), 2: (1, 2, 6, 7)}, model)


def check(pruning: Pruning, model: Path) -> None:
    check_plan(pruning, MoEShape.from_path(model), str(model))


def args(*argv: str) -> Any:
    return server_args.prepare_server_args(["--model-path", "dummy", *argv])


def model_config(model: Path, architecture: str = "DeepseekV3ForCausalLM") -> Any:
    content = json.loads((model / "config.json").read_text())
    hf_config = SimpleNamespace(architectures=[architecture], to_dict=lambda: content)
    return SimpleNamespace(hf_config=hf_config, hf_text_config=hf_config, model_path=str(model))


# --- plan and checkpoint ---


def test_a_plan_for_this_model_passes(pruning: Pruning, model: Path) -> None:
    check(pruning, model)


def test_a_plan_made_from_a_hub_id_knows_no_weights(tmp_path: Path, model: Path) -> None:
    identity = fingerprint(json.loads((model / "config.json").read_text()), None)
    plan = PrunePlan(model=identity, num_experts=EXPERTS, layers={1: (0, 3), 2: (1, 2)})
    check(Pruning(plan, tmp_path / "plan.json"), model)


def test_a_plan_for_another_model(tmp_path: Path, pruning: Pruning) -> None:
    other = write_checkpoint(tmp_path / "other", n_group=1, topk_group=1, rope_theta=5000)
    with pytest.raises(ValueError, match=rf"^{pruning.file}: model: got .*the fingerprint of the model in use$"):
        check(pruning, other)


def test_a_missing_file_of_the_checkpoint(tmp_path: Path, model: Path) -> None:
    (model / "model-2.safetensors").unlink()
    pruning = write_plan(tmp_path / "plan.json", {1: (0, 3), 2: (1, 2)}, model)
    with pytest.raises(ValueError, match=rf"^{model}: 1 of 2 checkpoint files are missing, first model-2.safetensors$"):
        check(pruning, model)
    (model / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"fingerprint"):
        check(pruning, model)
    pruning = write_plan(tmp_path / "plan.json", {1: (0, 3), 2: (1, 2)}, model)
    with pytest.raises(ValueError, match=rf"the checkpoint has no model.layers.2.mlp.experts.1, which {pruning.file}"):
        check(pruning, model)


def test_a_truncated_file_of_the_checkpoint(tmp_path: Path, model: Path) -> None:
    file = model / "model-2.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    pruning = write_plan(tmp_path / "plan.json", {1: (0, 3), 2: (1, 2)}, model)
    with pytest.raises(ValueError, match=rf"^{file}: not a whole safetensors file"):
        check(pruning, model)


def test_no_safetensors(tmp_path: Path, model: Path) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()
    pruning = write_plan(tmp_path / "plan.json", {1: (0, 3), 2: (1, 2)}, model)
    with pytest.raises(ValueError, match=rf"^{model}: no \*.safetensors there"):
        check(pruning, model)


# --- sidecar ---


NAME = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({NAME: tensors()[NAME][:1]}, r"up_proj.weight is F32 \[1, 4\], the checkpoint has F32 \[2, 4\]"),
        ({NAME: tensors()[NAME].bfloat16()}, r"up_proj.weight is BF16 \[2, 4\], the checkpoint has F32 \[2, 4\]"),
        ({"model.layers.9.x": torch.ones(2)}, r"model.layers.9.x is F32 \[2\], the checkpoint has no such tensor"),
    ],
    ids=["shape", "dtype", "name"],
)
def test_a_sidecar_replaces_like_by_like(tmp_path: Path, model: Path, replaced: Any, message: str) -> None:
    pruning = write_plan(tmp_path / "plan.json", {1: (0, 3), 2: (1, 2)}, model, replaced)
    with pytest.raises(ValueError, match=rf"^{pruning.sidecar}: .*{message}$"):
        check(pruning, model)


def test_a_sidecar_that_is_missing_or_another(tmp_path: Path, model: Path) -> None:
    pruning = write_plan(tmp_path / "plan.json", {1: (0, 3), 2: (1, 2)}, model, {NAME: tensors()[NAME]})
    check(pruning, model)
    assert pruning.sidecar is not None
    pruning.sidecar.write_bytes(pruning.sidecar.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=rf"^{pruning.file}: weights.sha256: got"):
        check(pruning, model)
    pruning.sidecar.unlink()
    with pytest.raises(ValueError, match=rf"^{pruning.file}: weights.file: got .* is missing$"):
        check(pruning, model)


# --- ranks ---


def test_every_layer_must_spread_over_the_ranks(tmp_path: Path) -> None:
    pruning = write_plan(tmp_path / "plan.json", {1: (0, 3), 2: (1, 2, 5, 6)})
    check_layout(pruning, tp_size=2, ep_size=2)
    with pytest.raises(ValueError, match=r"layer 1 keeps 2 experts, fewer than --tp-size 4$"):
        check_layout(pruning, tp_size=4, ep_size=1)
    with pytest.raises(ValueError, match=r"layer 1 keeps 2 experts, which --ep-size 4 does not divide$"):
        check_layout(pruning, tp_size=1, ep_size=4)


# --- flags ---


def test_every_refused_name_is_a_field_of_the_servers_arguments() -> None:
    parsed = args()
    assert [name for name, *_ in REFUSED if not hasattr(parsed, name)] == []
    assert [name for name, bad, _ in REFUSED if bad(getattr(parsed, name))] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_eplb", True),
        ("init_expert_location", "random.json"),
        ("ep_num_redundant_experts", 8),
        ("ep_dispatch_algorithm", "static"),
        ("elastic_ep_backend", "mooncake"),
        ("enable_elastic_expert_backup", True),
        ("enable_waterfill", True),
        ("moe_a2a_backend", "deepep"),
        ("speculative_algorithm", "EAGLE"),
        ("enable_lora", True),
        ("enable_paged_experts", True),
        ("kt_weight_path", "/weights"),
        ("load_format", "dummy"),
        ("weight_cache_mode", "daemon"),
    ],
)
def test_features_that_place_experts_themselves_are_refused(
    pruning: Pruning, model: Path, name: str, value: Any
) -> None:
    parsed = SimpleNamespace(**{"tp_size": 1, "ep_size": 1, name: value})
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ValueError, match=rf"^expert pruning does not work with {flag} {value}: "):
        check_server(pruning, parsed, model_config(model))
    assert name in {refused for refused, *_ in REFUSED}


def test_other_architectures_are_refused(pruning: Pruning, model: Path) -> None:
    with pytest.raises(ValueError, match=r"does not work with the architecture MixtralForCausalLM: allowed are"):
        check_server(pruning, args(), model_config(model, "MixtralForCausalLM"))


def test_unequal_groups_need_a_router_of_its_own(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", n_group=2, topk_group=1)
    parsed = args("--moe-runner-backend", "flashinfer_trtllm")
    equal = write_plan(tmp_path / "plan.json", {1: (0, 1, 4, 5), 2: (1, 2, 3, 4, 5, 6)}, model)
    check_server(equal, parsed, model_config(model))
    unequal = write_plan(tmp_path / "plan.json", {1: (0, 1, 4, 5, 6), 2: (0, 1, 4, 5)}, model)
    with pytest.raises(ValueError, match=r"unequal expert groups does not work with --moe-runner-backend flashinfer"):
        check_server(unequal, parsed, model_config(model))


def test_a_checkpoint_written_under_a_plan_brings_it(
    tmp_path: Path, pruning: Pruning, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt_stored_plan(str(model))
    assert get_pruning() is None
    config_file = model / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {PLAN_KEY: PLAN_FILE}))
    pruning.plan.save(model / PLAN_FILE)
    adopt_stored_plan(str(model))
    found = get_pruning()
    assert found is not None and found.is_stored and found.file == model / PLAN_FILE
    check_server(found, args(), model_config(model))  # the fingerprint is that of the full model
    adopt_stored_plan(str(model))
    monkeypatch.setenv(PRUNE_ENV, str(pruning.file))
    with pytest.raises(ValueError, match=r"stored under a plan of its own; leave out .*plan\.json"):
        adopt_stored_plan(str(model))


def test_a_server_is_checked_once(pruning: Pruning, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_once(pruning, args(), model_config(model))
    assert os.environ[CHECKED_ENV] == pruning.plan.digest
    (model / "model-2.safetensors").unlink()
    check_once(pruning, args(), model_config(model))
    monkeypatch.setenv(CHECKED_ENV, "another plan")
    with pytest.raises(ValueError, match="fingerprint"):
        check_once(pruning, args(), model_config(model))


def test_a_server_ends_with_one_line(
    pruning: Pruning, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = args("--load-format", "dummy")
    parsed._model_config = model_config(model)
    monkeypatch.setenv(PRUNE_ENV, str(pruning.file))
    for change, message in (
        (lambda: None, "error: expert pruning does not work with --load-format dummy: "),
        (lambda: pruning.file.write_text('{"version": 1'), f"error: {pruning.file}: plan: got"),
        (lambda: pruning.file.unlink(), f"error: {pruning.file}: plan: got 'No such file or directory'"),
    ):
        change()
        load_pruning.cache_clear()
        with pytest.raises(SystemExit) as caught:
            flags.prepare_server_args(parsed, [])
        out, err = capsys.readouterr()
        assert caught.value.code == 2 and out == ""
        assert err.startswith(message) and err.count("\n") == 1


@pytest.mark.parametrize("name", ["../plan.json", "/etc/hostname", "a/b.json", "", ".", "..", 3, ["plan.json"], "a\0"])
def test_a_checkpoint_names_no_file_outside_its_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({PLAN_KEY: name}))
    with pytest.raises(PlanError, match=r"moe_prune_plan: got .*allowed: the name of a file beside config.json"):
        adopt_stored_plan(str(tmp_path))
