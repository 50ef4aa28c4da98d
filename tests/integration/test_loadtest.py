"""The load test against the real server: its counts are the server's, hints take effect, a queue is noticed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from server import EDITED, UNCONFIGURED, Kind, Server, Servers

from loadtest.analysis import Analysis, Cell, analyse
from loadtest.folder import LoadtestFolder
from loadtest.load import Load
from loadtest.outputs.servers import servers
from sglang_moe_opt.cli.main import run

pytestmark = [pytest.mark.server, pytest.mark.slow]


def measure(server: Server, out: Path, *more: str) -> Analysis:
    short = ("--prompts", "random:8", "--output-len", "8", "--rounds", "1", "--seconds", "0.5", "--max-seconds", "60")
    assert run(["loadtest", "--url", server.url, *short, *more, "--out", str(out)]) == 0
    return analyse([out])


def cell(found: Analysis, arm: str, users: int) -> Cell:
    one = found.cell(arm, Load("closed", users))
    assert one is not None
    return one


def test_counts_are_the_servers_and_hints_take_effect(v2: Server, tmp_path: Path) -> None:
    found = measure(v2, tmp_path, "--profiles", "full,na=2", "--mix", "full=50,na=1=50", "--concurrency", "1,8")
    assert found.arms == ("full", "na=2", "full:50+na=1:50")
    assert not found.failures
    top_k = v2.shape.top_k
    for arm, kept in (("full", 1.0), ("na=2", 2 / top_k), ("full:50+na=1:50", (top_k + 1) / 2 / top_k)):
        slots = cell(found, arm, 8).values["slots_kept"].median
        assert slots == pytest.approx(kept, abs=0.1 if "+" in arm else 0.001)
    distinct = {arm: cell(found, arm, 8).values["distinct_experts"].median for arm in found.arms}
    assert distinct["na=2"] < distinct["full"]
    folder = LoadtestFolder(tmp_path)
    for arm in found.arms:
        point, records = folder.read_point(1, Load("closed", 8), arm)
        assert sum(record.output_tokens for record in records) == point.server.generated_tokens
        assert all(record.ok and record.input_tokens == record.output_tokens == 8 for record in records)


def test_an_auto_profile_is_measured_beside_fixed_ones(v2: Server, tmp_path: Path) -> None:
    found = measure(v2, tmp_path, "--profiles", "full,fast,auto", "--concurrency", "1,8", "--seconds", "2")
    assert found.arms == ("full", "fast", "auto") and not found.failures
    top_k = v2.shape.top_k
    alone = (8 + 7 * 2 / top_k) / 15  # the prompt in full, each generated token but the first under `fast`
    assert cell(found, "auto", 1).values["slots_kept"].median == pytest.approx(alone, abs=0.02)
    assert cell(found, "auto", 8).values["slots_kept"].median > 0.9
    assert "mb_per_token" in cell(found, "fast", 1).values
    assert "mb_per_token" not in cell(found, "auto", 1).values  # its mean na is no constant


@pytest.mark.parametrize("kind", [EDITED], ids=["queueing"])
def test_a_server_that_queues_is_noticed(servers: Servers, kind: Kind, tmp_path: Path) -> None:
    found = measure(servers.get(kind), tmp_path, "--profiles", "full", "--concurrency", "8", "--seconds", "3")
    assert re.search(
        r"the server ran at most [0-2] of 8 at a time, \d+ were queued", str(cell(found, "full", 8).caveats)
    )


@pytest.mark.parametrize("kind", [UNCONFIGURED], ids=["no-policy"])
def test_hints_to_a_server_without_skipping_are_refused(
    servers: Servers, kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = servers.get(kind)
    assert run(["loadtest", "--url", server.url, "--profiles", "full,na=2", "--out", str(tmp_path / "run")]) == 1
    assert "the server ignores skip hints" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("points/*"))


def test_a_pruned_model_is_measured_beside_the_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, plan, out = "shape:tiny-v2@2", tmp_path / "half.json", tmp_path / "run"
    assert run(["prune", "plan", "--model", model, "--criterion", "even", "--keep", "16", "--out", str(plan)]) == 0
    short = ("--prompts", "random:8", "--output-len", "8", "--seconds", "0.5", "--max-seconds", "60")
    command = ["loadtest", "--model", model, "--prune-plan", str(plan), *short, "--concurrency", "8"]
    assert run([*command, "--profiles", "full,na=2", "--rounds", "1", "--out", str(out)]) == 0
    found = analyse([out])
    assert found.arms == ("full", "na=2", "half", "half/na=2")
    assert not found.failures
    distinct = {arm: cell(found, arm, 8).values["distinct_experts"].median for arm in found.arms}
    assert 16 < distinct["full"] <= 48  # 8 times 6 of 64
    assert 1 < distinct["half/na=2"] < distinct["half"] <= 16
    assert cell(found, "half", 8).values["mb_per_token"].median < cell(found, "full", 8).values["mb_per_token"].median
    rows = servers(found)
    assert [(row.name, row.experts) for row in rows] == [("whole model", "64 of 64"), ("half", "16 of 64")]
    assert all(row.scheduler_mb and row.all_mb and row.all_mb > row.scheduler_mb > 100 for row in rows)
    assert "its scheduler holds" in capsys.readouterr().out


def test_a_hint_that_the_model_does_not_allow_is_refused(
    v2: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["loadtest", "--url", v2.url, "--profiles", "full,na=0", "--out", str(tmp_path / "run")]) == 2
    assert "na=0" in capsys.readouterr().err


def test_open_loop(v2: Server, tmp_path: Path) -> None:
    assert run(arguments(v2, tmp_path, "--rate", "20", "--seconds", "2")) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [load["label"] for load in summary["loads"]] == ["rate20"]
    records = LoadtestFolder(tmp_path).read_point(1, Load("poisson", 20), "full")[1]
    assert 15 < len(records) < 75
    assert all(record.ok for record in records)


def arguments(server: Server, out: Path, *more: str) -> Sequence[str]:
    short = ("--profiles", "full", "--prompts", "random:8", "--output-len", "8", "--rounds", "1")
    return ["loadtest", "--url", server.url, *short, *more, "--out", str(out)]
