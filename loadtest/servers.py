"""Start a real server for a measurement, wait until it answers, and take it down with all its processes."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from loadtest.folder import ServerMemory
from sglang_moe_opt.launch import plan_launch


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        url: its base.
        group: id of its process group.
        load_s: seconds from its start to its first answer on /health.
        log: what it printed, while it runs.
    """

    url: str
    group: int
    load_s: float
    log: Path

    def memory(self) -> int:
        """Bytes of memory that its processes hold, shared pages counted once (PSS)."""
        total = 0
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == self.group:
                    total += process.memory_full_info().pss
            except (ProcessLookupError, psutil.Error):
                continue  # ended meanwhile
        return total

    def scheduler_status(self) -> dict[str, int]:
        """Memory of its schedulers, which hold the model, together: bytes by the names of /proc/PID/status.

        Raises:
            RuntimeError: there is none.
        """
        total: dict[str, int] = {}
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) != self.group or not process.cmdline()[0].startswith("sglang::scheduler"):
                    continue
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except (OSError, psutil.Error, IndexError):
                continue  # ended meanwhile, or a kernel thread
            for name, _, value in (line.partition(":") for line in lines if line.endswith(" kB")):
                total[name] = total.get(name, 0) + int(value.split()[0]) * 1024
        if not total:
            raise RuntimeError("no scheduler among the server's processes")
        return total

    def resident(self) -> ServerMemory:
        """What it holds now. Raises RuntimeError without a scheduler."""
        return ServerMemory(scheduler_bytes=self.scheduler_status()["RssAnon"], all_bytes=self.memory())


@contextmanager
def server(
    model: str,
    *,
    on_cpu: bool,
    policy: str | None,
    port: int,
    extra: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    deadline_s: float = 600,
) -> Iterator[Running]:
    """Serve ``model`` with SGLang on ``port`` of this machine.

    Args:
        model: folder of the checkpoint, or a hub id.
        on_cpu: there is no accelerator.
        policy: policy file or ``builtin``; None starts SGLang with skipping not configured.
        port: TCP port.
        extra: further ``sglang serve`` arguments.
        env: further environment variables.
        deadline_s: seconds until /health must answer 200.

    Raises:
        RuntimeError: the port is taken, or the server did not come up; then the message ends with its log.
    """
    plan = plan_launch(model, on_cpu=on_cpu, extra=[*extra, "--port", str(port)], policy=policy)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_MOE_OPT_")}
    whole = {**plan.env, **inherited, **(env or {})}
    argv = [sys.executable, "-m", "sglang_moe_opt.cli.sglang_serve", *plan.argv]
    with running(argv, port=port, env=whole, deadline_s=deadline_s) as served:
        yield served


@contextmanager
def running(
    argv: Sequence[str], *, port: int, env: Mapping[str, str] | None = None, deadline_s: float = 600
) -> Iterator[Running]:
    """Start a server, wait for its /health, and end it with all its processes.

    Raises:
        RuntimeError: the port is taken, or the server did not come up; then the message ends with its log.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise RuntimeError(f"port {port} is taken: another server would be measured in place of ours")
    url = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                argv,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            _wait(process, url, log, deadline_s)
            yield Running(url, process.pid, time.monotonic() - start, log)
        finally:
            _stop(process)


def die_with_parent() -> None:
    """Have the kernel end the server if the measurement is killed before it can."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that what it started is stopped."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url + "/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    tail = log.read_text(errors="replace")[-3000:]
    killed = " (killed, as the kernel does when memory runs out)" if process.returncode == -signal.SIGKILL else ""
    raise RuntimeError(f"the server at {url} did not come up{killed}; its log ends:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sent, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        if sent is signal.SIGTERM:
            # The group outlives its leader: children that are still closing down would hold the memory.
            _wait_for_group(process.pid, 2)


def _wait_for_group(group: int, seconds: float) -> None:
    """Until no process of the group is left, at most so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
