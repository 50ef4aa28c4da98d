"""What a server holds, told from its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.servers import Running, free_port, running

HOLDS = "import sys, time; kept = b'x' * (64 << 20); print('ready', flush=True); time.sleep(60)"
SHELL = f'(exec -a sglang::scheduler_TP0 {sys.executable} -c "{HOLDS}") & exec {sys.executable} -c "{HOLDS}"'


@pytest.fixture
def group() -> Iterator[int]:
    """A process group with a scheduler and another process, each with 64 MB."""
    process = subprocess.Popen(["bash", "-c", SHELL], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        yield process.pid
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_schedulers_are_told_from_the_other_processes(group: int) -> None:
    held = Running("http://localhost:1", group, 0.0, Path("none")).resident()
    assert 64 << 20 <= held.scheduler_bytes < 100 << 20
    assert held.all_bytes > 2 * 64 << 20


def test_a_server_without_a_scheduler_is_none_of_ours() -> None:
    with pytest.raises(RuntimeError, match="no scheduler"):
        Running("http://localhost:1", os.getpgid(0), 0.0, Path("none")).resident()


@pytest.mark.parametrize(
    ("end", "message"), [("exit 3", "up; its log ends:\nhello"), ("kill -9 $$", "memory runs out")]
)
def test_a_server_that_ends_before_it_answers_says_how(end: str, message: str) -> None:
    with (
        pytest.raises(RuntimeError, match="did not come up") as error,
        running(["bash", "-c", f"echo hello; {end}"], port=free_port(), deadline_s=20),
    ):
        pass
    assert message in str(error.value)
