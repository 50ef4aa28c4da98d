"""`moe-opt schedule search` on a served model: results, profile, an interrupted search gone on with, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import ROOT, SPECIAL_IDS, checkpoint
from reference import reference
from safetensors.torch import save_file
from server import MINI_V3, Kind, Servers

from sglang_moe_opt.cli.main import run as moe_opt
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.pruning.statistics import INPUTS_FILE, input_name
from sglang_moe_opt.schedule import SkipSchedule
from sglang_moe_opt.search.by_weight import HEADROOM
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.endpoint import Endpoint
from tests.pruning.evidence import make_statistics

pytestmark = [pytest.mark.server, pytest.mark.slow]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sglang_moe_opt.cli.main", "schedule", "search", *map(str, arguments)]


on_mini = pytest.mark.parametrize("kind", [MINI_V3], ids=[MINI_V3.model])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text as the model knows it would need the raw data; repeated patterns of random ids will do."""
    generator = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("search") / "prompts.jsonl"
    lines = []
    for _ in range(40):
        pattern = generator.integers(SPECIAL_IDS, 4096, 12).tolist()
        lines.append(json.dumps({"ids": (pattern * 9)[:100]}))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def statistics(corpus: Path) -> Path:
    """What calibration samples, by transformers: its own server would take longer than all the rest here."""
    folder, found = checkpoint(MINI_V3.model), corpus.parent / "statistics"
    shape = MoEShape.from_path(folder)
    make_statistics(shape).save(found)
    model = reference(folder).model
    seen: dict[int, list[torch.Tensor]] = {one: [] for one in shape.moe_layer_ids}
    handles = [
        model.model.layers[one].mlp.gate.register_forward_pre_hook(
            lambda _, args, kept=kept: kept.append(args[0].flatten(0, -2))
        )
        for one, kept in seen.items()
    ]
    with torch.inference_mode():
        for line in corpus.read_text().splitlines()[:12]:
            model(torch.tensor([json.loads(line)["ids"]]), use_cache=False)
    for handle in handles:
        handle.remove()
    save_file({input_name(one): torch.cat(kept) for one, kept in seen.items()}, found / INPUTS_FILE)
    return found


@on_mini
def test_search_interrupted_and_gone_on_with(
    servers: Servers, kind: Kind, corpus: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = servers.get(kind)
    out, policy = tmp_path / "found", tmp_path / "policy.yaml"
    policy.write_text("# ours\nprofiles:\n  fast: {na: 2}  # quick\n")
    arguments = ["--model", "mini-v3", "--corpus", corpus, "--url", server.url, "--mean-na", 4, "--out", out]
    arguments += ["--tokens", 1024, "--piece", 64, "--mixes", 6, "--profile", "found", "--policy", policy]
    arguments += ["--statistics", statistics]

    first = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 300
    while not journal.exists() or '"mean_na' not in journal.read_text():  # the stage by weight has begun
        assert first.poll() is None, first.stderr.read() if first.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert (first.returncode, "goes on" in errors) == (130, True), errors
    known = len(journal.read_text().splitlines())
    assert not (out / "summary.json").exists()

    assert moe_opt(["schedule", "search", *map(str, arguments), "--seed", "1"]) == 2
    assert "was begun with" in capsys.readouterr().err

    done = subprocess.run(command(*arguments, "--json"), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    lines = journal.read_text().splitlines()
    assert len(lines) > known
    assert len({json.loads(line)["key"] for line in lines}) == len(lines), "something was asked for twice"

    winner, part = report["winner"], report["by_weight"]
    assert winner["mean_na"] <= 4 * (1 + HEADROOM)
    assert part["won"] == (winner["rule"] == "min_weight")
    chosen = part["rank_winner"]["rescale"]
    ways = {1.0, "fit", 1.0 if chosen == "router" else chosen}
    assert len(part["tried"]) >= 4 and {each["rescale"] for each in part["tried"]} == ways
    for each in part["tried"]:
        assert each["hint"] is None or each["mean_na"] <= sum(each["layers"]) / 5 * (1 + HEADROOM)
    # On text without sense the best table may be far below the budget; the uniform one is at it.
    even = [each["mean_na"] for each in part["tried"] if each["layers"] == [4] * 5]
    assert len(even) >= 2 and even == pytest.approx([4] * len(even), rel=0.02)
    best = part["best"]
    assert best["mean_na_on_check_text"] == pytest.approx(sum(best["layers"]) / 5, rel=0.1)
    assert report["model"] == "mini-v3"
    assert json.loads((out / "summary.json").read_text())["winner"] == winner
    assert {"uniform", "ascending", "descending"} <= {row["kind"] for row in report["compared"]}
    assert (out / "search.png").stat().st_size > 10_000
    text = policy.read_text()
    assert text.startswith("# ours\nprofiles:\n  fast: {na: 2}  # quick\n")
    rule = Policy.load(policy).profile("found").prefill
    assert rule == SkipSchedule.from_object(winner["hint"], "hint")

    assert moe_opt(["schedule", "search", *map(str, arguments)]) == 2
    assert "--replace" in capsys.readouterr().err


@on_mini
def test_nats_are_those_of_the_answers(servers: Servers, kind: Kind) -> None:
    """Schedules in one batch have the nats that each has alone."""
    server = servers.get(kind)
    generator = np.random.default_rng(1)
    pieces = [generator.integers(SPECIAL_IDS, 4096, length).astype(np.int32) for length in (30, 70)]
    candidates = [Candidate((8,) * 5), Candidate((8, 4, 4, 2, 1)), Candidate((3,) * 5, 1.1)]

    class Nothing(dict[str, float]):
        def add(self, answers: dict[str, float]) -> None:
            self.update(answers)

    found = Endpoint(server.url, Nothing(), concurrency=6, batch_tokens=30).nats(candidates, pieces, lambda _: None)
    for row, one in zip(found, candidates, strict=True):
        for nats, piece in zip(row, pieces, strict=True):
            info = server.generate(piece.tolist(), one.hint, new_tokens=1, return_logprob=True, logprob_start_len=0)
            alone = -sum(value for value, *_ in info["meta_info"]["input_token_logprobs"][1:])
            assert nats == pytest.approx(alone, abs=1e-3)
    assert len({round(float(value), 3) for value in found[:, 0]}) == 3
