"""A client process of a sweep: points come in as JSON lines, their requests run as Locust users, results go out.

    {"point": {...}, "records": "FILE"}  ->  {"event": "ready"}
    {"go": MONOTONIC_SECONDS}            ->  {"event": "progress", ...} ... {"event": "done", "result": {...}}

The clock is `time.monotonic()`, which all processes of a machine share.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import psutil
from locust import User, task
from locust.env import Environment
from locust.runners import LocalRunner

from loadtest.prompts import PromptSource
from loadtest.record import to_lines
from loadtest.session import Session, run_closed, run_open
from loadtest.spec import PointResult, PointSpec

LAG_PROBE_S = 0.02
PROGRESS_S = 1.0
_LAG_PERCENTILE = 99


class Virtual(User):
    """A user of the current point."""

    session: Session

    @task
    def run_point(self) -> None:
        (run_open if self.session.spec.parsed_load.is_open else run_closed)(self.session)
        gevent.sleep(1e9)  # Locust would call again; the runner stops it when the point is over


class Generator:
    """Runs one point after the other in one Locust runner."""

    def __init__(self) -> None:
        self._environment = Environment(user_classes=[Virtual], catch_exceptions=False)
        self._runner: LocalRunner = self._environment.create_local_runner()
        self._process = psutil.Process()

    def run(self, spec: PointSpec, records: Path) -> None:
        """Prepare, say so, wait for the start, run, and write the requests to `records`."""
        session = Session(spec, _source(spec))
        Virtual.session = session
        self._runner.start(spec.users, spawn_rate=max(1, spec.users))
        while self._runner.user_count < spec.users:
            gevent.sleep(0.005)
        gevent.sleep(0)
        _say(event="ready")
        zero = float(json.loads(sys.stdin.readline())["go"])
        gevent.sleep(max(0.0, zero - time.monotonic()))
        gc.collect()
        gc.disable()  # a collection would stop all streams for tens of milliseconds
        try:
            result = self._measure(session, zero)
        finally:
            gc.enable()
            self._runner.stop()
        records.write_text(to_lines(session.records), encoding="utf-8")
        _say(event="done", result=result.model_dump())

    def _measure(self, session: Session, zero: float) -> PointResult:
        lags: list[float] = []
        helpers = [gevent.spawn(_probe_lag, lags), gevent.spawn(_report, session)]
        used = self._cpu_s()
        session.open(zero)
        session.over.wait(timeout=session.spec.max_seconds)
        if not session.over.is_set():
            self._runner.stop()  # ends the users; each notes what it had
        ended, used = session.elapsed, self._cpu_s() - used
        gevent.killall(helpers)
        return PointResult(
            began=max(session.first_sent.values(), default=None),
            ended=min(ended, session.spec.max_seconds) if session.first_idle is None else session.first_idle,
            cut_off=session.cut_off,
            cpu_s=used,
            wall_s=ended,
            lag_ms=1000 * float(np.percentile(lags, _LAG_PERCENTILE)) if lags else 0.0,
        )

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


_sources: dict[str, PromptSource] = {}


def _source(spec: PointSpec) -> PromptSource | None:
    """Texts are read and shuffled once."""
    from loadtest.prompts import parse

    key = f"{spec.prompts} {spec.data_dir} {spec.vocab_size} {spec.seed}"
    if key not in _sources:
        _sources.clear()
        _sources[key] = parse(spec.prompts, vocab_size=spec.vocab_size, data_dir=spec.data_dir, seed=spec.seed)
    return _sources[key]


def _probe_lag(lags: list[float]) -> None:
    while True:
        asked = time.monotonic() + LAG_PROBE_S
        gevent.sleep(LAG_PROBE_S)
        lags.append(max(0.0, time.monotonic() - asked))


def _report(session: Session) -> None:
    while True:
        gevent.sleep(PROGRESS_S)
        failed = sum(record.failed for record in session.records)
        _say(event="progress", requests=len(session.records), failed=failed)


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    generator = Generator()
    while line := sys.stdin.readline():
        message = json.loads(line)
        generator.run(PointSpec.model_validate(message["point"]), Path(message["records"]))


if __name__ == "__main__":
    main()
