"""Whole runs against a small server: complete, interrupted, resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval.endpoint import EndpointError, Limits
from eval.results import ResultsFolder
from eval.runner import Request, RunError, evaluate
from eval.schedules import parse_profiles
from tests.eval.fake_server import fake_server, logprob
from tests.eval.small_data import small_data, weightless_model

LIMIT = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weightless_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def request_(data: Path, tmp_path: Path) -> Request:
    return Request(
        schedules=parse_profiles("full,fast,na=1"),
        tasks=("rte",),
        out=tmp_path / "run",
        data_dir=data,
        limit=LIMIT,
        limits=Limits(concurrency=2, batch_prompts=8, patience_s=0.5),
        command=("moe-opt", "eval"),
    )


def everything(folder: ResultsFolder) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in sorted(folder.root.glob("items/*/*.jsonl"))}


def test_a_run_is_a_complete_folder(model: Path, request_: Request) -> None:
    with fake_server(model) as server:
        folder = evaluate(server.url, request_)
        canary = len(request_.schedules) + 2
        assert len(server.prompts) == canary + 3 * 2 * LIMIT
    manifest = folder.read_manifest()
    assert [entry.label for entry in manifest.schedules] == ["full", "fast", "na=1"]
    assert [entry.mean_na for entry in manifest.schedules] == [6, 2, 1]
    (task,) = manifest.tasks
    assert (task.name, task.metric, task.total, task.items) == ("rte", "acc", 277, LIMIT)
    assert set(manifest.seconds) == {"full/rte", "fast/rte", "na=1/rte"}
    assert manifest.versions["lm-eval"] == "0.4.13"
    assert len(manifest.model_fingerprint) == 32
    assert not list((folder.root / "partial").rglob("*.jsonl"))


def test_items_are_scored_by_the_likelier_choice(model: Path, request_: Request) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    with fake_server(model) as server:
        folder = evaluate(server.url, request_)
    for label, hint in (("full", "full"), ("na=1", {"na": 1})):
        items = folder.read_items(label, "rte")
        assert [item.id for item in items] == list(range(LIMIT))
        for item in items:
            assert item.target == item.id % 2
            first, second = item.loglikelihoods
            assert item.acc == int((second > first) == (item.target == 1))
        text = "The number 0 is not 1.\nQuestion: It is 0. True or False?\nAnswer:"
        start = len(tokenizer(text, add_special_tokens=False).input_ids)
        ids = tokenizer(text + " True", add_special_tokens=False).input_ids
        value = sum(logprob(a, b, hint) for a, b in zip(ids[start - 1 :], ids[start:], strict=False))
        assert items[0].loglikelihoods[0] == pytest.approx(value)


def test_a_killed_run_is_finished_by_resume_with_the_same_numbers(
    model: Path, request_: Request, tmp_path: Path
) -> None:
    with fake_server(model) as server:
        whole = everything(evaluate(server.url, replace(request_, out=tmp_path / "whole")))
        asked = len(server.prompts)
    with fake_server(model, "dies", failures=30) as server:
        with pytest.raises(EndpointError, match="no answer for"):
            evaluate(server.url, request_)
        answered = len(server.prompts)
    folder = ResultsFolder(request_.out)
    assert folder.has_items("full", "rte")
    assert folder.partial_file("fast", "rte").exists()
    assert not folder.has_items("na=1", "rte")
    with fake_server(model) as server:
        evaluate(server.url, replace(request_, resume=True))
        canary = len(request_.schedules) + 2
        assert len(server.prompts) - canary <= asked - answered + 8  # at most one batch was under way
    assert everything(folder) == whole
    assert set(folder.read_manifest().seconds) == {"full/rte", "fast/rte", "na=1/rte"}


def test_a_finished_run_is_not_repeated(model: Path, request_: Request) -> None:
    with fake_server(model) as server:
        evaluate(server.url, request_)
        before = len(server.prompts)
        evaluate(server.url, replace(request_, resume=True))
        assert len(server.prompts) - before == len(request_.schedules) + 2
        with pytest.raises(RunError, match="holds a run already"):
            evaluate(server.url, request_)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"limit": 10}, "other tasks"), ({"schedules": parse_profiles("full,na=2")}, "other schedules")],
)
def test_resume_goes_on_with_the_same_run_only(model: Path, request_: Request, change: dict, complaint: str) -> None:
    with fake_server(model) as server:
        evaluate(server.url, request_)
        with pytest.raises(RunError, match=complaint):
            evaluate(server.url, replace(request_, resume=True, **change))


def test_another_model_is_not_resumed(model: Path, request_: Request, tmp_path: Path) -> None:
    with fake_server(model) as server:
        evaluate(server.url, request_)
    other = weightless_model(tmp_path / "other")
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace('"rope_theta": 10000.0', '"rope_theta": 9.0')
    )
    with fake_server(other) as server, pytest.raises(RunError, match="other model"):
        evaluate(server.url, replace(request_, resume=True))


def test_there_must_be_something_to_resume(request_: Request) -> None:
    with pytest.raises(RunError, match=r"no manifest\.json"):
        evaluate("http://127.0.0.1:9", replace(request_, resume=True))
