"""The server as a process of its own, for tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.servers import die_with_parent
from loadtest.sse_server.schedule import Fault, Schedule


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def sse_server(
    schedule: Schedule | None = None,
    faults: Sequence[Fault] = (),
    *,
    model: str | None = None,
    max_running: int | None = None,
    port: int = 0,
) -> Iterator[Served]:
    """Run the server until the block ends. Raises RuntimeError where it does not start."""
    schedule = schedule or Schedule()
    command = [sys.executable, "-m", "loadtest.sse_server", "--port", str(port)]
    command += ["--model", model] if model else []
    command += ["--ttft-ms", ",".join(map(str, schedule.ttft_ms)), "--gap-ms", ",".join(map(str, schedule.gap_ms))]
    command += [part for fault in faults for part in ("--fault", f"{fault.kind}:{fault.every}")]
    command += ["--max-running", str(max_running)] if max_running else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the streaming server did not start: {' '.join(command)}")
        yield Served(line.removeprefix("listening on ").strip(), process)
    finally:
        process.kill()
        process.wait()
