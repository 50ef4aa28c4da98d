#!/usr/bin/env python3
"""Runs the unit tests, then those with a real server, then those whose times count, and closes with one summary.

Usage: run_tests.py [PYTEST ARGUMENT ...]   (arguments go to every run)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

NO_TESTS = 5
# Unit tests use every core; a process that is done takes over what waits behind another's long test. Two tests with
# servers run at a time, those of one server in one process, in the order of tests/integration/conftest.py, which has
# the longest first. Where times count nothing runs beside.
PARTS = {
    "unit": [
        *("-m", "not server and not timed and not gpu", "-n", os.environ.get("PYTEST_WORKERS", "auto")),
        *("--dist", "worksteal", "--durations", "20"),
    ],
    "server": [
        *("-m", "server and not gpu", "-n", os.environ.get("PYTEST_SERVER_WORKERS", "2")),
        *("--dist", "loadgroup", "--no-loadscope-reorder", "--durations", "20"),
    ],
    # A machine that is shared may be late once by more than any bound allows; what is wrong is late every time.
    "timed": ["-m", "timed and not gpu", "-n", "0", "--reruns", "2"],
}
# Two processes and their servers share the cores: small models lose more by a second thread than they gain.
ENVIRONMENT = {"server": {"OMP_NUM_THREADS": "1"}}
# Where the tests of a part are, so that it does not import all others.
FOLDERS = {"server": ["tests/integration", "tests/loadtest"], "timed": ["tests/loadtest"]}


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def ok(self) -> bool:
        return self.exit_code in (0, NO_TESTS)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.exit_code if not self.ok else other.exit_code,
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
        )

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def run_part(name: str, arguments: list[str]) -> Outcome:
    """Run one part and count its outcomes from pytest's own report."""
    print(f"== {name} tests", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *PARTS[name], f"--junitxml={report}", *arguments]
        if not any(Path(argument.partition("::")[0]).exists() for argument in arguments):
            command += [folder for folder in FOLDERS.get(name, []) if Path(folder).is_dir()]
        environment = {**ENVIRONMENT.get(name, {}), **os.environ}
        outcome = read_report(report, subprocess.run(command, env=environment).returncode)
    print(f"== {name} tests: {outcome} in {time.monotonic() - started:.0f} s", flush=True)
    return outcome


def read_report(report: Path, exit_code: int) -> Outcome:
    """Counts of a JUnit report; a run that left none counts as one failure unless it had no tests."""
    if not report.exists():
        return Outcome(exit_code, failed=0 if exit_code in (0, NO_TESTS) else 1)
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return Outcome(exit_code, total - failed - skipped, failed, skipped)


def main(arguments: list[str]) -> int:
    total = Outcome(0)
    for name in PARTS:
        total += run_part(name, arguments)
    if total.ok and total.passed + total.failed + total.skipped == 0:
        print("no test was collected", file=sys.stderr)
        return NO_TESTS
    print(total, flush=True)
    return 0 if total.ok else total.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
