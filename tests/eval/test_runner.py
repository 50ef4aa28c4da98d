"""Whole runs against a small server: complete, interrupted, resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from eval.compare import compare
from eval.endpoint import EndpointError, Limits
from eval.plans import NamedPlan
from eval.results import ResultsFolder
from eval.runner import Request, RunError, evaluate, evaluate_plans
from eval.schedules import parse_profiles
from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import read_config
from sglang_moe_opt.plan import PrunePlan
from tests.eval.fake_server import fake_server, logprob
from tests.eval.small_data import small_data, weightless_model, write_odd_plan

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


# --- plans ---


class Servers:
    """Starts servers of the whole model and of pruned ones, and remembers which."""

    def __init__(self, model: Path, dies_at: str = "", served: Path | None = None) -> None:
        self._model, self._dies_at, self._served = model, dies_at, served
        self.started: list[str] = []
        self.prompts: list[list[int]] = []

    @contextmanager
    def serve(self, plan: NamedPlan | None) -> Iterator[str]:
        name, file = (plan.name, self._served or plan.file) if plan else ("whole", None)
        self.started.append(name)
        fault = "dies" if name == self._dies_at else "none"
        with fake_server(self._model, fault, failures=8, plan=file) as server:
            yield server.url
            self.prompts += server.prompts


@pytest.fixture
def plans(model: Path, tmp_path: Path) -> list[NamedPlan]:
    file = write_odd_plan(model, tmp_path / "odd.json")
    other = PrunePlan.load(file).model_copy(update={"layers": dict.fromkeys(range(1, 6), tuple(range(10)))})
    other.save(tmp_path / "first.json")
    return [NamedPlan(file.stem, file, PrunePlan.load(file)) for file in (file, tmp_path / "first.json")]


@pytest.fixture
def of_plans(request_: Request) -> Request:
    return replace(request_, schedules=parse_profiles("full,na=1"), limit=10)


LABELS = ["full", "na=1", "odd", "odd/na=1", "first", "first/na=1"]


def test_every_plan_has_a_server_of_its_own(model: Path, plans: list[NamedPlan], of_plans: Request) -> None:
    servers = Servers(model)
    folder = evaluate_plans(str(model), plans, servers.serve, of_plans)
    assert servers.started == ["whole", "odd", "first"]
    manifest = folder.read_manifest()
    assert [entry.label for entry in manifest.schedules] == LABELS
    assert [entry.plan and entry.plan.name for entry in manifest.schedules] == [None] * 2 + ["odd"] * 2 + ["first"] * 2
    assert [entry.plan.mean_kept for entry in manifest.schedules if entry.plan] == [32] * 2 + [10] * 2
    assert set(manifest.seconds) == {f"{label}/rte" for label in LABELS}
    assert all(len(folder.read_items(label, "rte")) == 10 for label in LABELS)


def test_finished_servers_are_not_started_again(model: Path, plans: list[NamedPlan], of_plans: Request) -> None:
    servers = Servers(model, dies_at="odd")
    with pytest.raises(EndpointError, match="no answer for"):
        evaluate_plans(str(model), plans, servers.serve, of_plans)
    again = Servers(model)
    folder = evaluate_plans(str(model), plans, again.serve, replace(of_plans, resume=True))
    assert (servers.started, again.started) == (["whole", "odd"], ["odd", "first"])
    assert set(folder.read_manifest().seconds) == {f"{label}/rte" for label in LABELS}
    for change in ({"plans": plans[:1]}, {"plans": plans[::-1]}):
        with pytest.raises(RunError, match="other schedules"):
            evaluate_plans(str(model), serve=again.serve, request=replace(of_plans, resume=True), **change)
    assert again.started == ["odd", "first"]


def test_a_server_must_run_under_the_plan(
    model: Path, plans: list[NamedPlan], of_plans: Request, tmp_path: Path
) -> None:
    servers = Servers(model, served=tmp_path / "first.json")
    with pytest.raises(EndpointError, match=f"under the plan {plans[1].plan.digest}, not {plans[0].plan.digest}"):
        evaluate_plans(str(model), plans, servers.serve, of_plans)


def test_a_running_server_says_under_which_plan(
    model: Path, plans: list[NamedPlan], of_plans: Request, tmp_path: Path
) -> None:
    folders = []
    for plan in (None, *plans):
        with fake_server(model, plan=plan and plan.file) as server:
            name = plan.name if plan else "whole"
            folders.append(evaluate(server.url, replace(of_plans, out=tmp_path / name)))
    manifests = [folder.read_manifest() for folder in folders]
    assert [entry.label for manifest in manifests for entry in manifest.schedules] == LABELS
    assert len({manifest.model_fingerprint for manifest in manifests}) == 1
    rows = compare([folder.root for folder in folders]).rows
    assert [row.label for row in rows] == LABELS
    assert [row.runs for row in rows] == [1] * len(LABELS)


def test_an_exported_checkpoint_is_the_whole_model_under_its_plan(
    model: Path, plans: list[NamedPlan], of_plans: Request, tmp_path: Path
) -> None:
    exported = weightless_model(tmp_path / "odd-exported")
    config = (exported / "config.json").read_text().replace('"n_routed_experts": 64', '"n_routed_experts": 32')
    (exported / "config.json").write_text(config)
    (exported / "moe_prune_plan.json").write_bytes(plans[0].file.read_bytes())
    with fake_server(exported) as server:
        manifest = evaluate(server.url, of_plans).read_manifest()
    whole, own = plans[0].plan.model, fingerprint(read_config(exported), exported)
    assert (manifest.model_fingerprint, manifest.schedules[0].label) == (whole, "odd-exported")
    entry = manifest.schedules[0].plan
    assert (entry.checkpoint, entry.num_experts, entry.share) == (own, 64, 0.5)
    (exported / "moe_prune_plan.json").write_bytes(plans[1].file.read_bytes())
    with fake_server(exported) as server, pytest.raises(FieldError, match="is this the plan of these weights"):
        evaluate(server.url, replace(of_plans, out=tmp_path / "other"))
