"""`moe-opt calibrate` records what a brute-force pass of Hugging Face transformers finds, also when interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoints import ROOT, checkpoint
from reference import prompt, reference
from safetensors.torch import load_file
from torch import Tensor

from sglang_moe_opt.pruning.statistics import PER_EXPERT, ExpertStatistics, input_name

pytestmark = [pytest.mark.server, pytest.mark.slow]

PIECE = 128
SAMPLE = 500
RTOL = 1e-4


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sglang_moe_opt.cli.main", "calibrate", *map(str, arguments)]


def run(*arguments: object) -> None:
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class BruteForce:
    """Every expert on every token, weighted by a dense matrix of gate weights."""

    def __init__(self, folder: Path) -> None:
        self.model = reference(folder).model
        self.layers = {i: layer for i, layer in enumerate(self.model.model.layers) if hasattr(layer.mlp, "gate")}
        self.sums: dict[str, list[Tensor]] = {}
        self.inputs: dict[int, list[Tensor]] = {layer_id: [] for layer_id in self.layers}
        self.tokens = 0

    @torch.inference_mode()
    def add(self, ids: list[int]) -> None:
        seen: dict[int, dict[str, Any]] = {layer_id: {} for layer_id in self.layers}
        handles = []
        for layer_id, layer in self.layers.items():
            found = seen[layer_id]
            handles += [
                layer.post_attention_layernorm.register_forward_pre_hook(
                    lambda _, args, found=found: found.update(before=args[0][0])
                ),
                layer.mlp.gate.register_forward_hook(
                    lambda _, args, out, found=found: found.update(x=args[0].flatten(0, -2), gate=out)
                ),
            ]
        self.model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        for index, (layer_id, found) in enumerate(seen.items()):
            self._count(index, self.layers[layer_id].mlp, **found)
            self.inputs[layer_id].append(found["x"])
        self.tokens += len(ids)

    def _count(self, index: int, mlp: Any, x: Tensor, gate: tuple[Tensor, Tensor, Tensor], before: Tensor) -> None:
        _, scaled, chosen = gate
        gate_up = torch.einsum("th,eoh->teo", x, mlp.experts.gate_up_proj)
        gated, up = gate_up.chunk(2, dim=-1)
        outputs = torch.einsum("teo,eho->teh", F.silu(gated) * up, mlp.experts.down_proj)
        weights = torch.zeros(outputs.shape[:2]).scatter_(1, chosen, scaled)
        after = before + torch.einsum("te,teh->th", weights, outputs)
        change = 1 - F.cosine_similarity(before.double(), after.double(), dim=-1)
        mask = torch.zeros(outputs.shape[:2], dtype=torch.float64).scatter_(1, chosen, 1.0)
        soft, norms = weights.double() / mlp.gate.routed_scaling_factor, outputs.double().norm(dim=-1)
        sums = {
            "hard": mask.sum(0),
            "soft": soft.sum(0),
            "reap": (soft * norms).sum(0),
            "easy_ep": (soft * norms * change[:, None]).sum(0),
            "norm": (mask * norms).sum(0),
            "coactivation": mask.T @ mask,
        }
        for name, value in sums.items():
            rows = self.sums.setdefault(name, [torch.zeros_like(value) for _ in self.layers])
            rows[index] += value

    def assert_equal(self, folder: Path) -> None:
        """Counts equal, sums within 1e-4; every sampled input is the same token's in all layers, none twice."""
        found = ExpertStatistics.load(folder)
        assert found.layer_ids == tuple(self.layers)
        assert found.tokens == self.tokens
        for name in (*PER_EXPERT, "coactivation"):
            rtol = 0 if name in ("hard", "coactivation") else RTOL
            expected = torch.stack(self.sums[name])
            torch.testing.assert_close(torch.from_numpy(found.tensors()[name]), expected, rtol=rtol, atol=0, msg=name)
        sampled, token = load_file(folder / "inputs.safetensors"), torch.empty(0)
        for layer_id, parts in self.inputs.items():
            rows = sampled[input_name(layer_id)]
            if not len(token):
                # the first tokens of all prompts are the same ones: any of them will do
                token = torch.cdist(rows, torch.cat(parts)).argmin(dim=1)
            assert rows.shape[0] == SAMPLE
            torch.testing.assert_close(rows, torch.cat(parts)[token], rtol=1e-3, atol=1e-4)
        assert len(set(token.tolist())) >= SAMPLE - 1


def write_prompts(file: Path, model: str, brute: BruteForce) -> None:
    """Prompts of several lengths as token ids; the longest is cut in two."""
    with file.open("w") as stream:
        for seed, length in enumerate((1, 2, 37, 100, 128, 200, 64, 90, 128, 128, 120, 77, 128, 60, 110)):
            ids = prompt(model, length, seed)
            stream.write(json.dumps({"ids": ids}) + "\n")
            for start in range(0, length, PIECE):
                brute.add(ids[start : start + PIECE])


@pytest.mark.parametrize("model", ["mini-v2"])
def test_statistics_equal_brute_force(model: str, tmp_path: Path) -> None:
    folder = checkpoint(model)
    brute = BruteForce(folder)
    (tmp_path / "corpus").mkdir()
    write_prompts(tmp_path / "corpus" / "prompts.jsonl", model, brute)
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    (tmp_path / "corpus" / "licence.txt").write_text(text, encoding="utf-8")
    from transformers import AutoTokenizer

    begin, *ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    for start in range(0, len(ids), PIECE - 1):
        brute.add([begin, *ids[start : start + PIECE - 1]])
    arguments = ("--model", folder, "--corpus", tmp_path / "corpus", "--piece", PIECE, "--sample", SAMPLE)
    run(*arguments, "--dtype", "float32", "--out", tmp_path / "out")
    brute.assert_equal(tmp_path / "out")
    provenance = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert provenance["job"]["tokens"] == brute.tokens
    assert len(provenance["job"]["model"]) == 32


@pytest.mark.parametrize("model", ["mini-v3"])
def test_an_interrupted_calibration_is_gone_on_with(model: str, tmp_path: Path) -> None:
    folder, out = checkpoint(model), tmp_path / "out"
    brute = BruteForce(folder)
    write_prompts(tmp_path / "prompts.jsonl", model, brute)
    arguments = ["--model", folder, "--corpus", tmp_path / "prompts.jsonl", "--piece", PIECE, "--sample", SAMPLE]
    arguments += ["--dtype", "float32", "--save-every", 100, "--out", out]
    first = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (out / "recorded" / "00000.safetensors").exists():
        assert first.poll() is None, first.stderr.read() if first.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert (first.returncode, "the same command goes on" in errors) == (130, True), errors
    kept = [file for file in (out / "recorded").iterdir() if file.stem.isdigit()]
    assert kept and not (out / "statistics.json").exists()

    other = subprocess.run(command(*arguments, "--seed", 1), cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 2
    assert f"{out} was begun with seed 0, not 1" in other.stderr

    run(*arguments)
    brute.assert_equal(out)
    again = subprocess.run(command(*arguments, "--json"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert json.loads(again.stdout)["tokens"] == brute.tokens
