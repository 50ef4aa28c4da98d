#!/usr/bin/env python3
"""Runs the unit tests, then those with a real server, and closes with one summary of both.

Usage: run_tests.py [PYTEST ARGUMENT ...]   (arguments go to both runs)
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
# Unit tests use every core; servers share the machine, so their tests run one at a time.
PARTS = {
    "unit": ["-m", "not server and not gpu", "-n", os.environ.get("PYTEST_WORKERS", "auto")],
    "server": ["-m", "server and not gpu", "-n", "0", "--durations", "20"],
}


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
        outcome = read_report(report, subprocess.run(command).returncode)
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
