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

from sglang_moe_opt.cli.main import run as moe_opt
from sglang_moe_opt.pruning.statistics import PER_EXPERT, ExpertStatistics, input_name

pytestmark = [pytest.mark.server, pytest.mark.slow]

PIECE = 128
SAMPLE = 500
RTOL = 1e-4
TIE = 1e-5
"""Where the last expert or group chosen is no further than this before the next, rounding may choose either."""


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
    def add(self, ids: list[int]) -> bool:
        """Count a prompt, unless one of its tokens is routed by a near tie; returns whether it was counted."""
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
        if any(margin(self.layers[one].mlp.gate, found["gate"][0]) < TIE for one, found in seen.items()):
            return False
        for index, (layer_id, found) in enumerate(seen.items()):
            self._count(index, self.layers[layer_id].mlp, **found)
            self.inputs[layer_id].append(found["x"])
        self.tokens += len(ids)
        return True

    def _count(self, index: int, mlp: Any, x: Tensor, gate: tuple[Tensor, Tensor, Tensor], before: Tensor) -> None:
        _, scaled, chosen = gate
        gate_up = torch.einsum("th,noh->tno", x, mlp.experts.gate_up_proj)
        gated, up = gate_up.chunk(2, dim=-1)
        outputs = torch.einsum("tno,nho->tnh", F.silu(gated) * up, mlp.experts.down_proj)
        weights = torch.zeros(outputs.shape[:2]).scatter_(1, chosen, scaled)
        after = before + torch.einsum("tn,tnh->th", weights, outputs)
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
                token = torch.cdist(rows, torch.cat(parts)).argmin(dim=1)
            assert rows.shape[0] == SAMPLE
            torch.testing.assert_close(rows, torch.cat(parts)[token], rtol=1e-3, atol=1e-4)
        # prompts that begin alike have tokens with equal inputs: no row more often than it was seen
        seen = torch.cat(self.inputs[min(self.inputs)])
        twins = (torch.cdist(seen[token], seen, compute_mode="donot_use_mm_for_euclid_dist") < 1e-4).sum(1)
        drawn = token.bincount()[token]
        assert (drawn <= twins).all()
        assert len(token.unique()) > SAMPLE * 9 // 10


def margin(gate: Any, logits: Tensor) -> float:
    """How far the nearest token is from being routed otherwise: in logits, in scores where there are groups."""
    bias = getattr(gate, "e_score_correction_bias", None)
    if bias is None:
        return gap(logits, gate.top_k)
    scores = logits.sigmoid() + bias
    groups = scores.view(len(scores), gate.num_group, -1)
    by_group = groups.topk(2, dim=-1).values.sum(-1)
    kept = torch.zeros_like(by_group).scatter_(1, by_group.topk(gate.topk_group).indices, 1.0).bool()
    within = groups.masked_fill(~kept[..., None], -torch.inf).flatten(1)
    return min(gap(by_group, gate.topk_group), gap(within, gate.top_k))


def gap(scores: Tensor, chosen: int) -> float:
    best = scores.topk(chosen + 1).values
    return float((best[:, -2] - best[:, -1]).min())


def write_prompts(file: Path, model: str, brute: BruteForce) -> None:
    """Prompts of several lengths as token ids."""
    lengths = [*range(1, PIECE, 7), *[PIECE] * 8]
    prompts = [prompt(model, length, seed) for seed, length in enumerate(lengths)]
    file.write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in prompts if brute.add(ids)))


@pytest.mark.parametrize("model", ["mini-v2"])
def test_statistics_equal_brute_force(model: str, tmp_path: Path) -> None:
    folder = checkpoint(model)
    brute = BruteForce(folder)
    (tmp_path / "corpus").mkdir()
    write_prompts(tmp_path / "corpus" / "prompts.jsonl", model, brute)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for number, text in enumerate((ROOT / "LICENSE").read_text(encoding="utf-8").split("\n\n")):
        ids = tokenizer(text)["input_ids"]
        if len(ids) <= PIECE and brute.add(ids):
            (tmp_path / "corpus" / f"{number}.txt").write_text(text, encoding="utf-8")
    arguments = ("--model", folder, "--corpus", tmp_path / "corpus", "--piece", PIECE, "--sample", SAMPLE)
    run(*arguments, "--dtype", "float32", "--out", tmp_path / "out")
    brute.assert_equal(tmp_path / "out")
    assert brute.tokens > 2000
    provenance = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert provenance["job"]["tokens"] == brute.tokens
    assert len(provenance["job"]["model"]) == 32


@pytest.mark.parametrize("model", ["mini-v3"])
def test_an_interrupted_calibration_is_gone_on_with(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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

    assert moe_opt(["calibrate", *map(str, arguments), "--seed", "1"]) == 2
    assert f"{out} was begun with seed 0, not 1" in capsys.readouterr().err

    run(*arguments)
    brute.assert_equal(out)
    finished = (out / "statistics.json").stat().st_mtime_ns
    assert moe_opt(["calibrate", *map(str, arguments), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == brute.tokens
    assert (out / "statistics.json").stat().st_mtime_ns == finished, "what is finished was done again"
