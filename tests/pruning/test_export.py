"""Exported checkpoints as files: what is in them, and what is refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.plan import PLAN_FILE, PLAN_KEY, PlanError, PrunePlan
from sglang_moe_opt.pruning.export import Export, split_shards
from sglang_moe_opt.pruning.tensor_file import StoredTensor, TensorCopy, read_header
from sglang_moe_opt.shapes import checkpoint_shards

torch = pytest.importorskip("torch")
from export_models import (  # noqa: E402 (needs torch)
    CONFIG,
    EXPERTS,
    UNEQUAL_GROUPS,
    UNEQUAL_LAYERS,
    UNIFORM,
    expected,
    is_expert,
    load,
    make_model,
    make_plan,
    same,
    shard,
)
from safetensors.torch import load_file, save_file  # noqa: E402


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "full")


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> Path:
    return make_plan(model, UNIFORM, tmp_path / "plan.json")


# --- content ---


def test_an_equal_plan_gives_an_ordinary_smaller_model(model: Path, plan: Path, tmp_path: Path) -> None:
    kept_files = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    for file in (*kept_files, "modeling_custom.py", "training.json", "README.md"):
        (model / file).write_text(f"---\nlicense: mit\nx: {file}\n---\n")
    export = Export.prepare(model, plan, tmp_path / "out", max_shard_bytes=10_000, command=("moe-opt", "x"))
    moved: list[int] = []
    export.write(moved.append)
    out = tmp_path / "out"
    assert same(load(out), expected(load(model), UNIFORM, renumbered=True))
    assert json.loads((out / "config.json").read_text()) == CONFIG | {"n_routed_experts": 4}
    for file in (*kept_files, "modeling_custom.py"):
        assert (out / file).read_text() == (model / file).read_text()
    assert not (out / "training.json").exists()  # it speaks of the full model
    assert sum(moved) == export.nbytes == sum(tensor.nbytes for tensor in load(out).values())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_shards_and_index(model: Path, plan: Path, tmp_path: Path) -> None:
    Export.prepare(model, plan, tmp_path / "out", max_shard_bytes=10_000).write()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert len(files) > 2
    for file in files:
        header = read_header(tmp_path / "out" / file)
        assert {name for name, home in index["weight_map"].items() if home == file} == set(header)
        assert sum(tensor.nbytes for tensor in header.values()) <= 10_000 or len(header) == 1
        assert all(tensor.start % tensor.item_bytes == 0 for tensor in header.values())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in load(tmp_path / "out").values())
    Export.prepare(model, plan, tmp_path / "one").write()
    assert [path.name for path in (tmp_path / "one").glob("model*")] == ["model.safetensors"]


def test_the_card_says_where_it_comes_from(model: Path, plan: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\nlicense_link: LICENSE\n---\nlicense: not this\n")
    command = ("moe-opt", "prune", "export")
    Export.prepare(model, plan, tmp_path / "out", source="some/model", command=command).write()
    card = (tmp_path / "out" / "README.md").read_text()
    head, body = card.split("\n---\n", 1)
    assert "license: mit\nlicense_link: LICENSE" in head and "not this" not in head
    assert "base_model: some/model" in head
    loaded = PrunePlan.load(plan)
    for part in (loaded.model, loaded.digest, '"criterion": "reap"', '"corpus": "abc"', "8 of 16", "\n".join(command)):
        assert part.replace("\n", " ") in body
    assert "| 1 | 4 | 0, 3-4, 7 |" in body and "| 2 | 4 | 1-2, 5-6 |" in body


@pytest.mark.parametrize("layers", [UNEQUAL_LAYERS, UNEQUAL_GROUPS], ids=["layers", "groups"])
def test_an_unequal_plan_keeps_ids_and_config_for_the_plugin(
    layers: dict[int, tuple[int, ...]], model: Path, tmp_path: Path
) -> None:
    plan = make_plan(model, layers, tmp_path / "plan.json")
    Export.prepare(model, plan, tmp_path / "out").write()
    assert same(load(tmp_path / "out"), expected(load(model), layers, renumbered=False))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CONFIG | {PLAN_KEY: PLAN_FILE}
    stored = PrunePlan.load(tmp_path / "out" / PLAN_FILE)
    assert stored.layers == layers and stored.model == PrunePlan.load(plan).model
    with pytest.raises(ValueError, match="the fingerprint of the model in use"):
        Export.prepare(tmp_path / "out", plan, tmp_path / "again")


def test_a_pruned_folder_of_the_plugin_is_no_source(model: Path, tmp_path: Path) -> None:
    plan = make_plan(model, UNEQUAL_LAYERS, tmp_path / "plan.json")
    Export.prepare(model, plan, tmp_path / "out").write()
    again = make_plan(tmp_path / "out", UNEQUAL_LAYERS, tmp_path / "again.json")
    with pytest.raises(ValueError, match="out: pruned by a plan already; export from the full model"):
        Export.prepare(tmp_path / "out", again, tmp_path / "out2")


def test_replaced_weights_are_written(model: Path, tmp_path: Path) -> None:
    full = load(model)
    names = ("experts.3.down_proj.weight", "shared_experts.down_proj.weight", "gate.weight")
    sidecar = {f"model.layers.1.mlp.{name}": full[f"model.layers.1.mlp.{name}"] + 1 for name in names}
    plan = make_plan(model, UNIFORM, tmp_path / "plan.json", sidecar)
    Export.prepare(model, plan, tmp_path / "out").write()
    out = load(tmp_path / "out")
    assert same(out, expected(full | sidecar, UNIFORM, renumbered=True))
    assert not same(out, expected(full, UNIFORM, renumbered=True))
    stored = PrunePlan.load(tmp_path / "out" / PLAN_FILE)
    assert stored.weights is None
    assert stored.provenance["exported"]["plan"] == PrunePlan.load(plan).digest


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.1.mlp.experts.9.up_proj.weight", (8, 16), "is not in the checkpoint"),
        ("model.layers.1.mlp.experts.3.up_proj.weight", (8, 15), r"got F32 \[8, 15\], allowed: F32 \[8, 16\]"),
    ],
)
def test_replaced_weights_that_do_not_fit(
    name: str, shape: tuple[int, ...], message: str, model: Path, tmp_path: Path
) -> None:
    plan = make_plan(model, UNIFORM, tmp_path / "plan.json", {name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=message):
        Export.prepare(model, plan, tmp_path / "out")


def test_fp8_scales_go_with_their_weights(tmp_path: Path) -> None:
    """And module lists of the quantisation follow the new numbers."""
    config = CONFIG | {
        "quantization_config": {
            "quant_method": "fp8",
            "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.experts.3", "model.layers.1.mlp.experts.5"],
        }
    }
    experts = [name for specs in checkpoint_shards(config) for name in (spec.name for spec in specs) if is_expert(name)]
    scales = {f"{name}_scale_inv": torch.rand(1, 1) for name in experts}
    model = make_model(tmp_path / "full", config, scales)
    for file in model.glob("*.safetensors"):
        tensors = load_file(file)
        quantised = {name: t.to(torch.float8_e4m3fn) if name in experts else t for name, t in tensors.items()}
        save_file(quantised, file, metadata={"format": "pt"})
    Export.prepare(model, make_plan(model, UNIFORM, tmp_path / "plan.json"), tmp_path / "out").write()
    out = load(tmp_path / "out")
    assert same(out, expected(load(model), UNIFORM, renumbered=True))
    assert out["model.layers.1.mlp.experts.3.up_proj.weight"].dtype == torch.float8_e4m3fn
    scale = "up_proj.weight_scale_inv"
    assert out[f"model.layers.1.mlp.experts.3.{scale}"] == scales[f"model.layers.1.mlp.experts.7.{scale}"]
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written == {
        "quant_method": "fp8",
        "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.experts.1"],
    }


@pytest.mark.parametrize("layers", [UNIFORM, UNEQUAL_LAYERS], ids=["stock", "plugin"])
def test_multi_token_prediction(layers: dict[int, tuple[int, ...]], tmp_path: Path) -> None:
    """Stock loaders give its layer the model's expert count: it goes. Under the full config it stays whole."""
    config = CONFIG | {"num_nextn_predict_layers": 1}
    mtp = {f"model.layers.3.mlp.experts.{expert}.up_proj.weight": torch.rand(8, 16) for expert in range(EXPERTS)}
    mtp |= {"model.layers.3.mlp.gate.weight": torch.rand(EXPERTS, 16), "model.layers.3.eh_proj.weight": torch.rand(2)}
    model = make_model(tmp_path / "full", config, mtp)
    export = Export.prepare(model, make_plan(model, layers, tmp_path / "plan.json"), tmp_path / "out")
    export.write()
    out = load(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    if export.form == "stock":
        assert not any(name in out for name in mtp)
        assert written["num_nextn_predict_layers"] == 0 and "multi-token prediction" in card
    else:
        assert same({name: out[name] for name in mtp}, mtp)
        assert written["num_nextn_predict_layers"] == 1 and "multi-token prediction" not in card


def test_split_shards() -> None:
    def tensor(name: str, nbytes: int) -> TensorCopy:
        return TensorCopy(name, StoredTensor(Path("x"), "U8", (nbytes,), 0, nbytes))

    shards = split_shards([tensor("a", 4), tensor("b", 6), tensor("c", 1), tensor("d", 99), tensor("e", 3)], 10)
    assert [[copy.name for copy in shard] for shard in shards.values()] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert next(iter(shards)) == "model-00001-of-00004.safetensors"


# --- refused before anything is written ---


def drop_tensors(model: Path, *names: str) -> None:
    for name in names:
        drop_tensor(model, name)


def drop_tensor(model: Path, name: str) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    file = model / index["weight_map"].pop(name)
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


GATE = "model.layers.2.mlp.gate"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (
        lambda model: shard(model, 2).unlink(),
        r"full: 1 of 5 shards missing: model-00003-of-00005\.safetensors",
    ),
    "cut-off shard": (
        lambda model: shard(model, 2).write_bytes(shard(model, 2).read_bytes()[:-5]),
        r"model-00003-of-00005\.safetensors: \d+ bytes where its header asks for \d+",
    ),
    "cut off in the header": (
        lambda model: shard(model, 2).write_bytes(shard(model, 2).read_bytes()[:50]),
        r"model-00003-of-00005\.safetensors: not a safetensors file",
    ),
    "index of other shards": (
        lambda model: shard(model, 0).write_bytes(shard(model, 4).read_bytes()),
        r"model-00001-of-00005\.safetensors: no model\.embed_tokens\.weight in it",
    ),
    "broken index": (
        lambda model: (model / "model.safetensors.index.json").write_text("{}"),
        r"index\.json: no weight_map",
    ),
    "no weights": (
        lambda model: (model / "model.safetensors.index.json").unlink(),
        r"full: neither model\.safetensors nor model\.safetensors\.index\.json",
    ),
    "no config": (lambda model: (model / "config.json").unlink(), r"config\.json: no readable config\.json"),
    "config is not JSON": (lambda model: (model / "config.json").write_text("{"), r"config\.json: not JSON"),
    "a kept expert's tensor": (
        lambda model: drop_tensors(model, "model.layers.1.mlp.experts.3.up_proj.weight"),
        r"full: layer 1 lacks experts\.3\.up_proj\.weight, which the plan keeps",
    ),
    "no gate": (
        lambda model: drop_tensors(
            model, *(f"model.layers.2.mlp.gate.{x}" for x in ("weight", "e_score_correction_bias"))
        ),
        "full: layer 2 has no router gate",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_checkpoint(damage: str, model: Path, tmp_path: Path) -> None:
    act, message = BROKEN[damage]
    plan = make_plan(model, UNIFORM, tmp_path / "plan.json")
    act(model)
    if damage in ("a kept expert's tensor", "no gate"):  # whole files: the plan is for this model
        plan = make_plan(model, UNIFORM, tmp_path / "plan.json")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message) as error:
        Export.prepare(model, plan, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_fused_experts_are_refused(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    model = make_model(tmp_path / "full", extra={name: torch.zeros(EXPERTS, 16, 16)})
    plan = make_plan(model, UNIFORM, tmp_path / "plan.json")
    with pytest.raises(ValueError, match=rf"{name} holds all experts in one tensor; allowed: one for each"):
        Export.prepare(model, plan, tmp_path / "out")


def test_a_plan_for_another_model(model: Path, plan: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", CONFIG | {"rope_theta": 5000})
    with pytest.raises(PlanError, match="the fingerprint of the model in use"):
        Export.prepare(other, plan, tmp_path / "out")


def test_a_plan_made_from_the_config_alone(model: Path, plan: Path, tmp_path: Path) -> None:
    """As plans are that were made from a hub id."""
    loaded = PrunePlan.load(plan).model_copy(update={"model": fingerprint(CONFIG, None)})
    loaded.save(plan)
    Export.prepare(model, plan, tmp_path / "out").write()
    assert (tmp_path / "out" / "config.json").exists()


def test_a_target_in_use(model: Path, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("keep")
    with pytest.raises(ValueError, match="out: holds something already; allowed: a new or empty folder"):
        Export.prepare(model, plan, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    Export.prepare(model, plan, tmp_path / "empty").write()
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_disk_that_is_too_small(model: Path, plan: Path, tmp_path: Path) -> None:
    """A sparse shard asks for more than any disk here has."""
    file, length = shard(model, 0), 3 << 40
    entry = {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    try:
        with file.open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            out.truncate(8 + len(header) + length)
    except OSError:
        pytest.skip("no sparse files of 3 TB here")
    plan = make_plan(model, UNIFORM, tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"GB free, the export needs 3298\.\d+ GB"):
        Export.prepare(model, plan, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "plan.json"]
