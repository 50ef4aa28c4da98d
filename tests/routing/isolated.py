"""Runs a test file in its own process, with or without Triton's interpreter.

``@triton.jit`` reads TRITON_INTERPRET when it decorates, so one process can either interpret kernels or compile them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TAIL_LINES = 60


def run_isolated(file: str, *, interpret: bool) -> None:
    """Run ``tests/routing/<file>`` under pytest and fail with the end of its output if it fails."""
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTEST_ADDOPTS")}
    if interpret:
        env["TRITON_INTERPRET"] = "1"
    # SGLang's routers and reductions are compiled by dynamo on first call: seconds for each shape.
    env["TORCHDYNAMO_DISABLE"] = "1"
    path = ROOT / "tests" / "routing" / file
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-s", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    output = (done.stdout + done.stderr).splitlines()
    if done.returncode != 0:
        pytest.fail("\n".join([f"{file} failed in its own process:", *output[-TAIL_LINES:]]), pytrace=False)
    print("\n".join(output[-TAIL_LINES:]))
