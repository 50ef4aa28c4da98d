"""`make demo`: two answers, a table and a report; interrupted at any time it leaves nothing running."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from checkpoints import checkpoint

pytestmark = [pytest.mark.server, pytest.mark.slow]


def command(model: Path, out: Path) -> list[str]:
    options = ["--model", str(model), "--concurrency", "4", "--rounds", "1", "--out", str(out)]
    return [sys.executable, "-m", "loadtest.demo", *options]


@pytest.fixture(scope="module")
def model() -> Path:
    return checkpoint("random-v2")


def test_it_answers_measures_and_reports(model: Path, tmp_path: Path, project_root: Path) -> None:
    done = subprocess.run(command(model, tmp_path), cwd=project_root, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    for profile, mean in (("full", 6), ("fast", 2)):
        assert re.search(rf"{profile} \({mean} experts per token, [\d.]+ s\): \w+", done.stdout), done.stdout
    report = re.search(r"report: (\S+report\.html)", done.stdout)
    assert report is not None
    assert Path(report[1]).exists()
    assert "tok/s" in done.stdout


@pytest.mark.parametrize("after_s", [2, 12])
def test_ctrl_c_leaves_no_process(model: Path, tmp_path: Path, project_root: Path, after_s: float) -> None:
    """Once while it begins and once while a server starts or answers."""
    demo = subprocess.Popen(
        command(model, tmp_path), cwd=project_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(after_s)
    started = psutil.Process(demo.pid).children(recursive=True)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    assert "Traceback" not in output
