"""Random checkpoints of real layer shapes: what is written, when it is reused, and that Hugging Face reads it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sglang_moe_opt import shape_checkpoint
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.shape_checkpoint import MANIFEST, ensure_shape
from sglang_moe_opt.shapes import SHAPES, ShapeSpec, checkpoint_shards, is_shape

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SGLANG_MOE_OPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shapes"


def tensors(folder: Path) -> dict[str, Any]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as reader:
            found |= {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (no dict)
    return found


# --- specs ---


def test_specs() -> None:
    assert ShapeSpec.parse("shape:deepseek-v2-lite@5") == ShapeSpec("deepseek-v2-lite", 5)
    assert ShapeSpec.parse("deepseek-v2-lite") == ShapeSpec("deepseek-v2-lite", 27)
    assert str(ShapeSpec.parse("tiny-v3")) == "tiny-v3@3"
    assert is_shape("shape:x") and not is_shape("/models/x")


@pytest.mark.parametrize(
    "spec", ["", "gpt-2", "shape:", "tiny-v2@", "tiny-v2@x", "tiny-v2@1", "tiny-v2@99", "tiny-v2@-2", "deepseek-v3@3"]
)
def test_bad_specs_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        ensure_shape(spec)


@pytest.mark.parametrize("name", SHAPES)
def test_tensor_sizes_agree_with_the_shape(name: str) -> None:
    """Two independent counts: the tensors to write, and MoEShape's arithmetic."""
    config = ShapeSpec.parse(name).config("float16")
    shape = MoEShape.from_config(config)
    written = sum(
        tensor.shape[0] * tensor.shape[1]
        for shard in checkpoint_shards(config)
        for tensor in shard
        if len(tensor.shape) > 1
    )
    counted = shape.weight_bytes_per_token([shape.num_experts] * shape.num_moe_layers)["total"] // 2
    assert written == counted + shape.vocab_size * shape.hidden_size  # and the embedding


# --- files ---


def test_values_and_names() -> None:
    folder = ensure_shape("tiny-v3")
    found = tensors(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == sum(value.numel() * value.element_size() for value in found.values())
    gate = found["model.layers.1.mlp.gate.weight"].float()
    assert gate.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(gate.mean().item()) < 0.001
    assert (found["model.layers.0.input_layernorm.weight"] == 1).all()
    bias = found["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32 and bias.std() > 0
    assert found["lm_head.weight"].dtype == torch.bfloat16
    a, b = (found[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"] for expert in (0, 1))
    assert not torch.equal(a, b)


def test_random_routing_is_even() -> None:
    """The trap that this replaces: dummy weights send every token to the same experts."""
    gate = tensors(ensure_shape("tiny-v2"))["model.layers.1.mlp.gate.weight"].float()
    hidden = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    chosen = (hidden @ gate.T).topk(6).indices
    assert chosen.unique().numel() >= 60  # of 64; 63.9 expected


def test_values_depend_on_name_and_seed_alone() -> None:
    short, long = tensors(ensure_shape("tiny-v2@2")), tensors(ensure_shape("tiny-v2@3"))
    assert all(torch.equal(value, long[name]) for name, value in short.items())
    other = tensors(ensure_shape("tiny-v2@2", seed=1))
    assert not torch.equal(short["lm_head.weight"], other["lm_head.weight"])


def test_tensors_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape_checkpoint, "_CHUNK", 5000)
    found = tensors(ensure_shape("tiny-v2@2", dtype="float32"))
    assert found["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.01)
    assert found["lm_head.weight"].flatten()[:5000].ne(found["lm_head.weight"].flatten()[5000:10000]).all()


def test_a_second_call_writes_nothing(cache: Path) -> None:
    folder = ensure_shape("tiny-v2")
    assert folder.parent == cache
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert ensure_shape("shape:tiny-v2@3") == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert ensure_shape("tiny-v2", dtype="float32") != folder


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "format"])
def test_a_damaged_cache_entry_is_written_again(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure_shape("tiny-v2@2")
    shard = next(folder.glob("*.safetensors"))
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:100])
    elif damage == "remove":
        shard.unlink()
    elif damage == "manifest":
        (folder / MANIFEST).write_text("{")
    else:
        monkeypatch.setattr(shape_checkpoint, "FORMAT", 999)
    ensure_shape("tiny-v2@2")
    assert shard.stat().st_size > 100
    assert len(tensors(folder)) == 2 + 1 + 2 * 7 + 3 + 64 * 3 + 1 + 3  # ends, norms and attention, dense, experts ...


def test_out(tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert ensure_shape("tiny-v2@2", out) == out == ensure_shape("tiny-v2@2", out)
    with pytest.raises(ValueError, match="holds something else"):
        ensure_shape("tiny-v3@2", out)
    (mine := tmp_path / "mine").mkdir()
    (mine / "notes").write_text("keep")
    with pytest.raises(ValueError, match="holds something else"):
        ensure_shape("tiny-v2@2", mine)
    assert (mine / "notes").read_text() == "keep"


def test_a_failed_write_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(shape_checkpoint, "_write_values", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_shape("tiny-v2@2")
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []


def test_a_shape_that_does_not_fit_the_disk_is_refused_before_writing() -> None:
    with pytest.raises(ValueError, match=r"disk: deepseek-v3@61 takes 1\d{3}\.\d GB"):
        ensure_shape("deepseek-v3")


def test_writers_at_the_same_time_agree() -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: ensure_shape("tiny-v2@2"), range(4)))
    assert len(set(folders)) == 1
    assert tensors(folders[0])


# --- tokenizer ---


def tokenizer(folder: Path, size: int) -> Path:
    folder.mkdir()
    vocab = {str(index): index for index in range(size - 1)}
    added = [{"id": size - 1, "content": "</s>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": size - 1}))
    (folder / "model.safetensors").write_text("not copied")
    return folder


def test_a_tokenizer_is_copied(tmp_path: Path) -> None:
    folder = ensure_shape("tiny-v2@2", tokenizer=tokenizer(tmp_path / "tok", 8192))
    assert (folder / "tokenizer.json").exists() and (folder / "tokenizer_config.json").exists()
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 8191
    assert not (folder / "model.safetensors").exists()
    assert folder != ensure_shape("tiny-v2@2")


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 8193 ids, allowed: up to 8192"):
        ensure_shape("tiny-v2@2", tokenizer=tokenizer(tmp_path / "tok", 8193))
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        ensure_shape("tiny-v2@2", tokenizer=tmp_path)


# --- Hugging Face ---


@pytest.mark.parametrize("spec", ["tiny-v2", "tiny-v3"])
def test_transformers_loads_every_weight(spec: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = ensure_shape(spec, dtype="float32")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits
    assert logits.shape == (1, 16, 8192)
    assert logits.isfinite().all() and logits.std() > 0.01
