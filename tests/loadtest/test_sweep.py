"""Sweeps against servers without an engine: order, resuming, queues, faults, and what is left when a server dies."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.results import ResultsError
from loadtest.analysis import analyse
from loadtest.folder import ArmEntry, LoadtestFolder, PlanEntry, ServerMemory
from loadtest.load import Load
from loadtest.sse_server import Fault, Schedule, sse_server
from loadtest.sweep import Options, Sweep, SweepError
from loadtest.target import Target, find_target
from sglang_moe_opt.cli.main import run
from tests.loadtest.synthetic_load import plan_of

pytestmark = pytest.mark.timed  # on a busy machine times mean nothing

QUICK = Schedule((5.0,), (5.0,))
LOADS = [Load("closed", 2), Load("closed", 4)]


def sweep(root: Path, targets: dict[str, Target], **changed: Any) -> Sweep:
    arms = [ArmEntry(label=name, url=target.url, hints={name: (None, 1.0)}) for name, target in targets.items()]
    values: dict[str, Any] = {
        "loads": LOADS,
        "prompts": "random:4",
        "output_len": 8,
        "rounds": 2,
        "seconds": 0.2,
        "max_seconds": 5,
        "silence_s": 2,
        "patience_s": 1,
    }
    return Sweep(arms, {t.url: t for t in targets.values()}, Options(**values | changed), LoadtestFolder(root))


def target(url: str) -> Target:
    return find_target(url, "auto", needs_text=False)


def test_every_point_is_measured_in_turns(tmp_path: Path) -> None:
    with sse_server(QUICK) as quick, sse_server(Schedule((5.0,), (10.0,))) as slow:
        both = {"slow": target(slow.url), "quick": target(quick.url)}
        sweep(tmp_path, both).run()
    found = analyse([tmp_path])
    assert found.arms == ("slow", "quick")
    assert found.loads == tuple(LOADS)
    assert not found.failures
    for load in LOADS:
        cell = found.cell("quick", load)
        assert cell is not None
        assert cell.speedup["output_tok_s"].median == pytest.approx(1.9, abs=0.35)
        assert cell.values["tpot_p50_ms"].median == pytest.approx(5, abs=1.2)
        assert cell.values["running"].median == pytest.approx(load.value, abs=1) if "running" in cell.values else True
    order = sorted(tmp_path.glob("points/*.json"), key=lambda file: file.stat().st_mtime)
    assert [file.stem for file in order[:6]] == [
        "r1-c2-slow",
        "r1-c2-quick",
        "r1-c4-slow",
        "r1-c4-quick",
        "r2-c2-quick",
        "r2-c2-slow",
    ]


def test_a_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    with sse_server(QUICK) as served:
        one = {"a": target(served.url)}
        sweep(tmp_path, one, rounds=1).run()
        before = {file: file.read_bytes() for file in tmp_path.glob("points/*.json")}
        assert len(before) == 2
        with pytest.raises(SweepError, match="--resume goes on"):
            sweep(tmp_path, one, rounds=2).run()
        sweep(tmp_path, one, rounds=2, resume=True).run()
        with pytest.raises(ResultsError, match="that run has output_len 8, this one 9"):
            sweep(tmp_path, one, output_len=9, resume=True).run()
        with pytest.raises(ResultsError, match="other arms: a"):
            sweep(tmp_path, {"b": target(served.url)}, resume=True).run()
    assert len(list(tmp_path.glob("points/*.json"))) == 4
    assert all(file.read_bytes() == content for file, content in before.items()), "nothing is measured twice"


def test_memory_is_measured_once_and_a_plan_belongs_to_the_run(tmp_path: Path) -> None:
    held = [ServerMemory(scheduler_bytes=size, all_bytes=2 * size) for size in (1, 2, 3)]
    found: list[ServerMemory] = []

    def measure() -> ServerMemory:
        assert not list(tmp_path.glob("points/*"))
        found.append(held[len(found)])
        return found[-1]

    def arms(plan: PlanEntry, url: str) -> list[ArmEntry]:
        whole = [ArmEntry(label=label, url=url, hints={label: (None, 1.0)}) for label in ("full", "na=2")]
        return [*whole, ArmEntry(label="half", url=url + "/", hints={"full": (None, 1.0)}, plan=plan)]

    def run(plan: PlanEntry, rounds: int, resume: bool, memory: Any = None) -> list[ArmEntry]:
        with sse_server(QUICK) as served:
            both = {url: target(served.url) for url in (served.url, served.url + "/")}
            quick = {"seconds": 0.2, "max_seconds": 5, "patience_s": 1, "rounds": rounds, "resume": resume}
            options = Options(LOADS[:1], "random:4", 8, memory=dict.fromkeys(both, memory or measure), **quick)
            Sweep(arms(plan, served.url), both, options, LoadtestFolder(tmp_path)).run()
        return LoadtestFolder(tmp_path).read_manifest().arms

    half = plan_of("half", [32, 32])
    assert [arm.memory for arm in run(half, 1, False)] == [held[0], held[0], held[1]]
    again = run(half, 2, True, lambda: held[2])
    assert [arm.memory for arm in again] == [held[0], held[0], held[1]], "as it was when the run began"
    with pytest.raises(ResultsError, match="other arms: full, na=2, half"):
        run(plan_of("half", [16, 16]), 2, True)


def test_faults_are_counted_per_point(tmp_path: Path) -> None:
    faults = [Fault("http500", 5), Fault("cut", 7), Fault("broken", 11)]
    with sse_server(QUICK, faults) as served:
        sweep(tmp_path, {"a": target(served.url)}, requests=60, seconds=0).run()
    found = analyse([tmp_path])
    cells = [found.cell("a", load) for load in LOADS]
    assert all(cell is not None and set(cell.errors) == {"HTTP 500", "connection closed"} for cell in cells)
    assert all("requests failed" in cell.caveats[0] for cell in cells if cell)
    assert found.failures == sum(sum(cell.errors.values()) for cell in cells if cell) > 40


def test_a_server_that_pauses_does_not_end_the_sweep(tmp_path: Path) -> None:
    with sse_server(QUICK) as served:
        timers = [
            threading.Timer(2.0, served.process.send_signal, [signal.SIGSTOP]),
            threading.Timer(5.0, served.process.send_signal, [signal.SIGCONT]),
        ]
        for timer in timers:
            timer.start()
        running = sweep(tmp_path, {"a": target(served.url)}, rounds=6, seconds=0.4, patience_s=20)
        running.run()
    found = analyse([tmp_path])
    assert len(list(tmp_path.glob("points/*.json"))) == 12
    assert sum(len(cell.values["requests"].all) for cell in found.cells) == 12


def test_a_server_that_dies_leaves_what_was_measured(tmp_path: Path) -> None:
    with sse_server(QUICK) as served:
        threading.Thread(target=_kill_after_points, args=(served.process, tmp_path, 3), daemon=True).start()
        with pytest.raises(SweepError, match=r"has not answered for 1 s .* go on with --resume"):
            sweep(tmp_path, {"a": target(served.url)}, rounds=50).run()
    found = analyse([tmp_path])
    assert 0 < sum(len(cell.values["requests"].all) for cell in found.cells) < 100


def _kill_after_points(process: subprocess.Popen[bytes], folder: Path, points: int) -> None:
    while len(list(folder.glob("points/*.json"))) < points:
        time.sleep(0.05)
    process.kill()


def test_a_queue_and_a_short_batch_are_flagged(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    with sse_server(Schedule((20.0,), (40.0,)), max_running=2, model=str(folder)) as served:
        out = tmp_path / "run"
        sweep(out, {"a": target(served.url)}, loads=[Load("closed", 6)], seconds=2.0, rounds=1, max_seconds=20).run()
    cell = analyse([out]).cells[0]
    assert "the server ran at most 2 of 6 at a time, 4 were queued" in cell.caveats


def model_folder(folder: Path) -> Path:
    """What makes the server without an engine look like SGLang's: a model whose config can be read."""
    from sglang_moe_opt.shapes import ShapeSpec

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(ShapeSpec.parse("shape:deepseek-v2-lite@2").config("float32")))
    return folder


def command(url: str, out: Path, *more: str) -> Sequence[str]:
    point = ("--concurrency", "2", "--rounds", "1", "--seconds", "0.2", "--max-seconds", "5", "--output-len", "8")
    return ["loadtest", "--url", url, "--profiles", "full", "--prompts", "random:4", *point, "--out", str(out), *more]


def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sse_server(QUICK) as served:
        assert run(command(served.url, tmp_path / "run", "--goodput", "ttft:1000")) == 0
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"manifest.json", "summary.json", "summary.csv", "report.html", "throughput.png"} <= names
    assert "tok/s" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["kind"] == "loadtest"


def test_failed_requests_end_in_one_line_and_a_bad_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sse_server(QUICK, [Fault("http500", 3)]) as served:
        assert run(command(served.url, tmp_path / "run")) == 1
    assert (tmp_path / "run" / "report.html").exists()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("moe-opt: error: ")
    assert "requests failed; see the table of points" in last


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--concurrency", "0"], "--concurrency: got"),
        (["--rate", "2"], "--concurrency and --rate"),
        (["--prompts", "poems"], "--prompts: got"),
        (["--goodput", "ttft"], "--goodput: got"),
        (["--baseline", "x"], "--baseline: got"),
        (["--mix", "fast"], "--mix: got"),
        (["--api", "soap"], "--api: got"),
        (["--profiles", "na="], "--profiles: got"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with sse_server(QUICK) as served:
        assert run(command(served.url, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_url_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command("http://127.0.0.1:9", tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
