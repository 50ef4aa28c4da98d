"""`moe-opt eval` against a real server: lm-eval's own numbers to the item, and runs that are cut off and finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from server import MINI_V2, Kind, Server, Servers, needs_text

from eval.compare import compare
from eval.results import Item, ResultsFolder
from eval.runner import Request, evaluate
from eval.schedules import parse_profiles

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.data]

TASKS = ("rte", "arc_easy", "winogrande")
STOCK = {
    "rte": ("glue/rte/default.yaml", "validation"),
    "arc_easy": ("arc/arc_easy.yaml", "test"),
    "winogrande": ("winogrande/default.yaml", "validation"),
}
CUT_TASKS = ("cloze", "bits_per_byte", "next_word")
LIMIT = 12
NEAR = 2e-4
"""fp32, nats summed over a continuation: batches of another composition round differently."""


@pytest.fixture
def mini(request: pytest.FixtureRequest, servers: Servers) -> Server:
    server = servers.get(request.param)
    needs_text(server)
    return server


on_mini = pytest.mark.parametrize("mini", [MINI_V2], indirect=True)
"""As a parameter, so that these tests run beside the others of that server."""


def command(url: str, data: Path, out: Path, *options: str) -> list[str]:
    tool = [sys.executable, "-m", "sglang_moe_opt.cli.main", "eval", "--url", url, "--data-dir", str(data)]
    return [*tool, "--out", str(out), *options]


def run(url: str, data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(url, data, out, *options), capture_output=True, text=True, timeout=900)


def assert_close(ours: list[Item], theirs: list[Item]) -> None:
    """Two lists of items say the same, log-likelihoods up to rounding."""
    assert [item.id for item in ours] == [item.id for item in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=NEAR)
        assert (one.acc, one.acc_norm, one.answer) == (other.acc, other.acc_norm, other.answer)


@on_mini
def test_full_gives_what_stock_lm_eval_gives(mini: Server, data_folder: Path, tmp_path: Path) -> None:
    done = run(mini.url, data_folder, tmp_path / "run", "--profiles", "full,na=1", "--tasks", ",".join(TASKS),
               "--limit", str(LIMIT), "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary
    folder = ResultsFolder(tmp_path / "run")
    stock = _stock(mini, data_folder)
    for task in TASKS:
        items = folder.read_items("full", task)
        assert len(items) == LIMIT
        for item, sample in zip(items, stock[task], strict=True):
            assert item.id == sample["doc_id"]
            assert item.loglikelihoods == pytest.approx([answer[0] for answer in sample["filtered_resps"]], abs=NEAR)
            assert item.acc == sample["acc"]
            assert item.acc_norm == sample.get("acc_norm")
        reduced = folder.read_items("na=1", task)
        assert all(a.loglikelihoods != b.loglikelihoods for a, b in zip(items, reduced, strict=True))
    assert (tmp_path / "run" / "report.html").exists()


def _stock(server: Server, data: Path) -> dict[str, list[dict[str, Any]]]:
    """Samples of lm-eval's own tasks with its own `local-completions`."""
    import lm_eval
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    configs = []
    for task, (yaml, split) in STOCK.items():
        config = load_yaml(Path(lm_eval.tasks.__file__).parent / yaml, resolve_func=True, recursive=True)
        for key in ("dataset_name", "training_split", "validation_split", "test_split", "tag"):
            config.pop(key, None)
        files = {split: str(data / task / f"{split}.jsonl")}
        configs.append(config | {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": split})
    options = {
        "model": str(server.model),
        "tokenizer": str(server.model),
        "base_url": f"{server.url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "num_concurrent": 4,
        "max_length": 2048,
    }
    result = lm_eval.simple_evaluate("local-completions", options, tasks=configs, limit=LIMIT, bootstrap_iters=0)
    samples: dict[str, list[dict[str, Any]]] = result["samples"]
    return samples


@on_mini
def test_a_run_cut_off_is_finished_with_the_same_numbers(mini: Server, data_folder: Path, tmp_path: Path) -> None:
    options = ("--profiles", "full,fast", "--tasks", ",".join(CUT_TASKS), "--limit", "24")
    options = (*options, "--batch", "4", "--concurrency", "1")
    whole = ResultsFolder(tmp_path / "whole")
    done = run(mini.url, data_folder, whole.root, *options)
    assert done.returncode == 0, done.stderr
    cut, resumed = ResultsFolder(tmp_path / "cut"), ("--resume",)
    returned, errors = _cut_off(command(mini.url, data_folder, cut.root, *options), cut, CUT_TASKS[0], signal.SIGINT)
    assert returned == 130
    last = errors.strip().splitlines()[-1]
    assert "interrupted" in last
    assert str(cut.root) in last
    assert "Traceback" not in errors
    again = command(mini.url, data_folder, cut.root, *options, *resumed)
    returned, _ = _cut_off(again, cut, CUT_TASKS[1], signal.SIGKILL)
    assert returned == -signal.SIGKILL
    assert not cut.has_items("fast", CUT_TASKS[-1])
    done = run(mini.url, data_folder, cut.root, *options, *resumed)
    assert done.returncode == 0, done.stderr
    for schedule in ("full", "fast"):
        for task in CUT_TASKS:
            assert_close(cut.read_items(schedule, task), whole.read_items(schedule, task))


def _cut_off(tool: list[str], folder: ResultsFolder, task: str, ending: signal.Signals) -> tuple[int, str]:
    """Start a run and end it while it is at this task of the second schedule; exit code and what it said."""
    process = subprocess.Popen(
        tool, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
    )
    partial = folder.partial_file("fast", task)
    deadline = time.monotonic() + 600
    while not (partial.exists() and partial.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, ending)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def _hear_interrupts() -> None:
    """A shell starts what it puts in the background with SIGINT ignored, and so would be all that the tests start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("kind", [Kind(plan="by-layer, replaced")], ids=["pruned"])
def test_a_pruned_server_is_evaluated_as_one(
    v2: Server, servers: Servers, kind: Kind, data_folder: Path, tmp_path: Path
) -> None:
    needs_text(v2)
    pruned, said = servers.get(kind), Console(file=StringIO(), width=200)
    whole, small = (
        evaluate(
            server.url,
            Request(parse_profiles("full,na=1"), ("cloze",), tmp_path / name, data_folder, limit=8),
            said,
        )
        for server, name in ((v2, "whole"), (pruned, "small"))
    )
    name = f"{pruned.log.stem}.plan"
    canaries = [line for line in said.file.getvalue().splitlines() if line.startswith("canary: ")]
    assert ["differ from Hugging Face fp32 by" in line for line in canaries] == [True, True]  # no more than fp32 may
    assert canaries[1].startswith(f"canary: {name}: ")
    rows = compare([whole.root, small.root]).rows
    assert [row.label for row in rows] == ["full", "na=1", name, f"{name}/na=1"]
    assert [row.plan and row.plan.digest for row in rows] == [None, None, *[pruned.plan.digest] * 2]
    for label in ("full", "na=1"):
        under = name if label == "full" else f"{name}/{label}"
        pairs = zip(whole.read_items(label, "cloze"), small.read_items(under, "cloze"), strict=True)
        assert all(a.loglikelihoods != b.loglikelihoods for a, b in pairs)


def test_a_wrong_url_is_one_clear_line(data_folder: Path, tmp_path: Path) -> None:
    done = run("http://127.0.0.1:9", data_folder, tmp_path / "run", "--tasks", "rte")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("moe-opt: error: http://127.0.0.1:9: cannot be reached")
    assert not (tmp_path / "run" / "manifest.json").exists()
