"""Training continues exactly where it stopped, and leaves a usable log."""

import json
from pathlib import Path

import pytest
import torch

from eval.reference_models.checkpoint import Checkpoint
from eval.reference_models.data import TokenCorpus, TrainStream, sample_windows
from eval.reference_models.handover import LOG_NAME, pack
from eval.reference_models.recipe import Recipe
from eval.reference_models.train import train


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / LOG_NAME).read_text().splitlines()]


def test_resumed_run_is_bit_identical(
    any_recipe: Recipe, corpus: TokenCorpus, heldout: TokenCorpus, tmp_path: Path
) -> None:
    whole = train(any_recipe, tmp_path / "whole", corpus, heldout)
    train(any_recipe, tmp_path / "parts", corpus, heldout, stop_at=320)
    parts = train(any_recipe, tmp_path / "parts", corpus, heldout)
    assert parts.tokens == whole.tokens == 640
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name
    speedless = [
        [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows(tmp_path / d)]
        for d in ("whole", "parts")
    ]
    assert speedless[0] == speedless[1]
    assert rows(tmp_path / "whole")[-1]["lr"] == 0
    assert [row["tokens"] for row in rows(tmp_path / "whole") if "heldout_bpb" in row] == [128, 256, 384, 512, 640]
    assert not (tmp_path / "whole" / "train.pid").exists()


def test_log_rows_after_the_checkpoint_are_forgotten(tiny_recipe: Recipe, corpus: TokenCorpus, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path, corpus, stop_at=128)
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"tokens": 192, "loss": 1.0}\n{"tokens": 25')  # a killed process: one lost step, one torn line
    train(tiny_recipe, tmp_path, corpus, stop_at=256)
    assert [row["tokens"] for row in rows(tmp_path)] == [64, 128, 192, 256]


def test_training_learns(tiny_recipe: Recipe, corpus: TokenCorpus, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path, corpus, total_tokens=12800)
    log = rows(tmp_path)
    assert log[-1]["loss"] < 0.75 * log[0]["loss"], "random documents repeat, so they can be learnt by heart"


def test_checkpoint_of_another_model_is_refused(tiny_recipe: Recipe, corpus: TokenCorpus, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path, corpus, stop_at=64)
    with pytest.raises(ValueError, match="another `seed` section"):
        train(tiny_recipe.model_copy(update={"seed": 1}), tmp_path, corpus)


def test_previous_checkpoint_serves_when_the_newest_is_missing(
    tiny_recipe: Recipe, corpus: TokenCorpus, tmp_path: Path
) -> None:
    train(tiny_recipe, tmp_path, corpus, stop_at=320)
    (tmp_path / "checkpoint.pt").unlink()
    checkpoint = Checkpoint.load(tmp_path)
    assert checkpoint is not None and checkpoint.tokens == 256


def test_stream_is_a_function_of_position(tiny_recipe: Recipe, corpus: TokenCorpus) -> None:
    one, other = TrainStream(corpus, tiny_recipe), TrainStream(corpus, tiny_recipe)
    whole = one.read(0, 5000)  # several epochs
    assert other.read(3000, 500).tolist() == whole[3000:3500].tolist()
    inputs, targets = other.batch(128, 64)
    assert inputs.flatten().tolist() == whole[128:192].tolist()
    assert targets.flatten().tolist() == whole[129:193].tolist()


def test_an_unfinished_run_continues_on_another_machine(
    any_recipe: Recipe, corpus: TokenCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = train(any_recipe, tmp_path / "here", corpus, stop_at=320)
    assert pack(tmp_path / "here", tmp_path / "committed") == 320
    monkeypatch.setattr(Recipe, "unfinished_dir", tmp_path / "committed")
    there = train(any_recipe, tmp_path / "there", corpus, stop_at=320)
    for name, value in here.model.state_dict().items():
        torch.testing.assert_close(there.model.state_dict()[name], value, rtol=2**-8, atol=0)
    finished = train(any_recipe, tmp_path / "there", corpus)
    assert finished.tokens == 640
    assert [row["tokens"] for row in rows(tmp_path / "there")] == list(range(64, 641, 64))


def test_sampled_windows_come_from_the_wanted_sources_only(corpus: TokenCorpus) -> None:
    source = corpus.sources[0]
    tokens, _ = corpus.only(source)
    whole = {tuple(window) for window in tokens[: len(tokens) // 16 * 16].reshape(-1, 16).tolist()}
    windows = sample_windows(corpus, [source, "no such source"], 4, 16)
    assert windows.shape == (4, 16)
    assert {tuple(window) for window in windows.tolist()} <= whole
    assert torch.equal(windows, sample_windows(corpus, [source], 4, 16))
