"""The client's processes as a sweep sees them: start, run a point on all of them at once, gather what they saw."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from loadtest.folder import ClientSide
from loadtest.record import Record, read_lines
from loadtest.servers import die_with_parent
from loadtest.spec import PointResult, PointSpec

START_S = 60
"""Time for a process to start and to prepare its users."""
HEAD_START_S = 0.05
GRACE_S = 30
"""Time beyond a point's limit after which a process counts as hung."""


class GeneratorError(RuntimeError):
    """A client process ended or hung; the message ends with what it said."""


class Generators:
    """So many client processes; use as a context manager."""

    def __init__(self, processes: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._all = [_Generator(Path(self._folder.name), part) for part in range(processes)]

    def __enter__(self) -> Generators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._all:
            one.kill()
        self._folder.cleanup()

    def run(
        self, spec: PointSpec, on_progress: Callable[[int, int], None] = lambda requests, failed: None
    ) -> tuple[list[Record], PointResult, ClientSide]:
        """One point; `on_progress` is told the requests so far and how many of them failed.

        Raises:
            GeneratorError: a process ended or hung.
        """
        busy = [one for one in self._all if self._spec(spec, one).users]
        for one in busy:
            one.tell({"point": self._spec(spec, one).model_dump(), "records": str(one.records)})
        for one in busy:
            one.expect("ready", START_S)
        go = time.monotonic() + HEAD_START_S
        for one in busy:
            one.tell({"go": go})
        patience = spec.max_seconds + GRACE_S
        done = [one.expect("done", patience, lambda: on_progress(*_sum(busy))) for one in busy]
        results = [PointResult.model_validate(message["result"]) for message in done]
        records = [record for one in busy for record in read_lines(one.records)]
        began = [result.began for result in results if result.began is not None]
        merged = PointResult(
            began=max(began, default=None),
            ended=min(result.ended for result in results),
            cut_off=sum(result.cut_off for result in results),
            cpu_s=sum(result.cpu_s for result in results),
            wall_s=max(result.wall_s for result in results),
            lag_ms=max(result.lag_ms for result in results),
        )
        client = ClientSide(processes=len(busy), cpu_s=merged.cpu_s, wall_s=merged.wall_s, lag_ms=merged.lag_ms)
        return sorted(records, key=lambda record: record.start), merged, client

    def _spec(self, spec: PointSpec, one: _Generator) -> PointSpec:
        return spec.model_copy(update={"part": one.part, "parts": len(self._all)})


class _Generator:
    def __init__(self, folder: Path, part: int) -> None:
        self.part = part
        self.records = folder / f"records-{part}.jsonl"
        self.counts = (0, 0)
        self._complaints = (folder / f"stderr-{part}").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def expect(self, event: str, patience_s: float, on_progress: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The next message other than progress. Raises GeneratorError."""
        end = time.monotonic() + patience_s
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise GeneratorError(f"client process {self.part}: no {event!r} in {patience_s:.0f} s") from None
            if message is None:
                raise self._ended()
            if message["event"] == event:
                return message
            self.counts = (message["requests"], message["failed"])
            on_progress()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._complaints.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def _ended(self) -> GeneratorError:
        self._complaints.seek(0)
        said = self._complaints.read().strip().splitlines()
        return GeneratorError(f"client process {self.part} ended: {said[-1] if said else 'without a word'}")


def _sum(generators: list[_Generator]) -> tuple[int, int]:
    requests, failed = zip(*(one.counts for one in generators), strict=True)
    return sum(requests), sum(failed)
