"""Requests as the client saw them, and the folder that keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.results import ResultsError
from loadtest.folder import ArmEntry, ClientSide, LoadtestFolder, Manifest, PointFile, ServerSide
from loadtest.load import Load
from loadtest.record import CUT_OFF, Record, read_lines, to_lines
from sglang_moe_opt.fields import FieldError

ANSWERED = Record("full", 0.5, (0.1, 0.15, 0.3), 0.31, 8, 5)
FAILED = Record("full", 0.5, (), 2.0, 0, 0, "HTTP 500")


def test_latencies_are_derived_from_arrivals() -> None:
    assert ANSWERED.ok
    assert ANSWERED.ttft == 0.1
    assert ANSWERED.tpot == pytest.approx(0.05)  # 0.2 s for the four tokens after the first
    assert ANSWERED.gaps == pytest.approx([0.05, 0.15])
    assert ANSWERED.e2e == 0.3


def test_a_failure_has_no_latencies() -> None:
    assert FAILED.failed
    assert (FAILED.ttft, FAILED.tpot, FAILED.gaps, FAILED.e2e) == (None, None, [], 2.0)


def test_a_single_token_has_no_time_between_tokens() -> None:
    assert Record("full", 0, (0.2,), 0.2, 4, 1).tpot is None


def test_cut_off_is_neither_answered_nor_failed() -> None:
    record = Record("full", 0, (0.1,), 1.0, 4, 1, CUT_OFF)
    assert not record.ok
    assert not record.failed


def test_lines_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(to_lines([ANSWERED, FAILED]))
    assert list(read_lines(file)) == [ANSWERED, FAILED]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(to_lines([ANSWERED]) + '{"profile": "full"\n')
    with pytest.raises(FieldError, match=r"requests\.jsonl: line 2"):
        list(read_lines(file))


def manifest() -> Manifest:
    return Manifest(
        created="2026-01-01T00:00:00+00:00",
        command=["moe-opt", "loadtest"],
        model="mini-v2",
        model_fingerprint="0" * 32,
        model_config_json=None,
        arms=[ArmEntry(label="na=2", url="http://localhost:1", hints={"na=2": ({"na": 2}, 1.0)})],
        loads=["c16"],
        rounds=1,
        prompts="random:8",
        output_len=4,
        seconds=1,
        max_seconds=10,
        api="completions",
        versions={},
        machine={},
        git_revision=None,
    )


POINT = PointFile(
    arm="na=2",
    load="c16",
    round=1,
    started_at="2026-01-01T00:00:00+00:00",
    begin=0.0,
    end=2.0,
    cut_off=0,
    server=ServerSide(running=[16, 16]),
    client=ClientSide(processes=1, cpu_s=0.1, wall_s=2.0, lag_ms=0.4),
)


def test_a_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    folder, load = LoadtestFolder(tmp_path), Load("closed", 16)
    folder.write_manifest(manifest())
    assert not folder.has_point(1, load, "na=2")
    folder.write_point(POINT, [ANSWERED, FAILED])
    assert folder.has_point(1, load, "na=2")
    assert folder.read_point(1, load, "na=2") == (POINT, [ANSWERED, FAILED])
    assert folder.read_manifest() == manifest()


def test_arms_of_older_runs_have_neither_plan_nor_memory(tmp_path: Path) -> None:
    older = manifest().model_dump(mode="json")
    for arm in older["arms"]:
        del arm["plan"], arm["memory"]
    LoadtestFolder(tmp_path).manifest_file.write_text(json.dumps(older))
    assert LoadtestFolder(tmp_path).read_manifest() == manifest()


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = LoadtestFolder(tmp_path)
    with pytest.raises(ResultsError, match=r"no manifest\.json"):
        folder.read_manifest()
    folder.manifest_file.write_text("{}")
    with pytest.raises(ResultsError, match=r"manifest\.json: created"):
        folder.read_manifest()
    folder.write_point(POINT, [])
    next(tmp_path.glob("requests/*")).unlink()
    with pytest.raises(ResultsError, match="missing, but its point is there"):
        folder.read_point(1, Load("closed", 16), "na=2")
