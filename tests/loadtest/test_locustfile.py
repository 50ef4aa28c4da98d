"""The locustfile under plain Locust, without its web UI."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtest.record import Record, read_lines
from loadtest.sse_server import Fault, Schedule, sse_server

pytestmark = pytest.mark.timed  # on a busy machine times mean nothing

SCHEDULE = Schedule((10.0,), (5.0,))


def locust(root: Path, url: str, out: Path, *more: str, code: int = 0) -> list[Record]:
    """Run it for four seconds, of which its start takes some; every request."""
    command = [sys.executable, "-m", "locust", "-f", str(root / "loadtest" / "locustfile.py"), "--headless"]
    command += ["--host", url, "-u", "10", "-r", "10", "-t", "4s", "--json-file", str(out / "stats")]
    command += ["--prompts", "random:4", "--output-len", "6", "--records", str(out / "records.jsonl"), *more]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return list(read_lines(out / "records.jsonl"))


def statistics(out: Path) -> dict[str, dict[str, Any]]:
    """What Locust itself counted, by name; written after its last user has ended."""
    return {row["name"]: row for row in json.loads((out / "stats.json").read_text())}


def median(row: dict[str, Any]) -> float:
    """Of a row's response times, in ms; Locust keeps them rounded."""
    times = sorted(Counter({float(ms): count for ms, count in row["response_times"].items()}).elements())
    return times[len(times) // 2]


def test_latencies_of_each_profile_are_locusts_statistics(project_root: Path, tmp_path: Path) -> None:
    with sse_server(SCHEDULE) as served:
        records = locust(project_root, served.url, tmp_path, "--profile-mix", "full=70,na=2=30")
    assert all(record.ok and record.output_tokens == 6 for record in records)
    shares = Counter(record.profile for record in records)
    assert shares["full"] / len(records) == pytest.approx(0.7, abs=0.1)
    rows = statistics(tmp_path)
    assert {f"{p} {m}" for p in ("full", "na=2") for m in ("TTFT", "TPOT", "E2E")} <= set(rows)
    assert median(rows["full TTFT"]) == pytest.approx(10, abs=6)
    assert {p: rows[f"{p} E2E"]["num_requests"] for p in shares} == shares


def test_failures_are_locusts_failures(project_root: Path, tmp_path: Path) -> None:
    with sse_server(SCHEDULE, [Fault("http500", 4)]) as served:
        records = locust(project_root, served.url, tmp_path, code=1)
    failed = [record for record in records if record.failed]
    assert {record.error for record in failed} == {"HTTP 500"}
    assert statistics(tmp_path)["full E2E"]["num_failures"] == len(failed) > 0


def test_an_open_loop_keeps_its_rate(project_root: Path, tmp_path: Path) -> None:
    with sse_server(Schedule((300.0,), (1.0,))) as served:
        records = locust(project_root, served.url, tmp_path, "--arrivals-per-second", "40")
    assert 40 <= len(records) <= 190


def test_a_trace_is_replayed(project_root: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{10 + n // 10:02}.{n % 10}000000,{20 + n},{2 + n % 3}" for n in range(30)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    with sse_server(SCHEDULE) as served:
        records = locust(project_root, served.url, tmp_path, "--trace", str(trace), "--trace-speed", "3")
    assert len(records) == 30, "three seconds in one"
    assert sorted(record.input_tokens for record in records) == [20 + n for n in range(30)]
    assert Counter(record.output_tokens for record in records) == {2: 10, 3: 10, 4: 10}
    starts = sorted(record.start for record in records)
    assert starts[-1] - starts[0] == pytest.approx(2.9 / 3, abs=0.2)


def test_processes_share_the_users(project_root: Path, tmp_path: Path) -> None:
    """Master and workers: the way to several machines."""
    options: Sequence[str] = ("--processes", "2", "--expect-workers", "2")
    with sse_server(SCHEDULE) as served:
        records = locust(project_root, served.url, tmp_path, *options)
    assert len(records) > 50
    assert statistics(tmp_path)["full E2E"]["num_requests"] == len(records)
