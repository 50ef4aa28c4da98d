#!/usr/bin/env python3
"""Pastes README's commands one by one into a fresh clone with an empty home, and writes down what they answered.

Usage: transcript.py REPOSITORY SCRATCH [--data-dir DIR]

SCRATCH gets the clone and the home; the steps stand in docs/transcript.yaml, the result goes to docs/transcript.md.
A step that ends with another status than it should is marked, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MOST_LINES = 14
MOST_COLUMNS = 160
START_S = 900
HEAD = """# A transcript

README's commands, pasted one by one into a fresh clone of {revision} with an empty home, on {date}, on {cores} cores
without a GPU. Long outputs are cut (`...`), warnings of libraries left out, and a number stands
only for that one run, beside other work.
`python tools/transcript.py REPOSITORY SCRATCH --data-dir DATA` makes this page anew.

"""
NOISE = re.compile(r"Warning|warn\(|^\s*$|Location '|deprecat|Ignore import error|Cannot detect CUDA", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        run: for bash; DATA is the folder of raw data.
        say: Markdown before it.
        serves: it is a server, and this address answers once it does; it runs until the next server or `stops`.
        stops: the server that runs is ended before.
        status: that it should end with.
        lines, columns: of the output that are shown.
    """

    run: str
    say: str = ""
    serves: str = ""
    stops: bool = False
    status: int = 0
    lines: int = MOST_LINES
    columns: int = MOST_COLUMNS


@dataclass(frozen=True)
class Shell:
    """Where the commands run: the clone, and an environment without anything of the maintainer's home."""

    clone: Path
    env: dict[str, str]
    data: str

    def finished(self, step: Step) -> tuple[int, str]:
        command = step.run.replace("DATA", self.data)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.clone,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def serving(self, step: Step) -> tuple[subprocess.Popen[bytes], str]:
        """Start it and wait until it answers."""
        log = self.clone.parent / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", "exec " + step.run],
                cwd=self.clone,
                env=self.env,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        end = time.monotonic() + START_S
        while time.monotonic() < end and process.poll() is None:
            try:
                with urllib.request.urlopen(step.serves, timeout=2) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.5)
        return process, log.read_text(errors="replace")


def stop(process: subprocess.Popen[bytes] | None) -> None:
    """End a server as Ctrl-C does."""
    if process is None or process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def shown(text: str, lines: int, columns: int, hidden: dict[str, str]) -> str:
    """The first and last lines of an output, without the machine's paths."""
    for path, name in hidden.items():
        text = text.replace(path, name)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    kept = [line.rstrip()[:columns] for line in re.split(r"[\r\n]+", text) if not NOISE.search(line)]
    if len(kept) > lines:
        first = max(1, lines // 3)
        kept = [*kept[:first], "...", *kept[len(kept) - (lines - first) :]]
    return "\n".join(kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--data-dir", default="")
    options = parser.parse_args()
    clone, home = options.scratch / "sglang-moe-opt", options.scratch / "home"
    home.mkdir(parents=True, exist_ok=True)
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", options.repository, clone], check=True)
    path = f"{clone}/.venv/bin:{os.environ['PATH']}"
    kept = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "http", "LANG"))
    }
    shell = Shell(clone, {**kept, "HOME": str(home), "PATH": path, "COLUMNS": "120"}, options.data_dir)
    hidden = {str(clone): "~/sglang-moe-opt", str(home): "~", str(Path.home()): "~"}
    if options.data_dir:
        hidden[options.data_dir] = "DATA"
    file = options.repository.resolve() / "docs" / "transcript.md"
    steps = [Step(**entry) for entry in yaml.safe_load(file.with_suffix(".yaml").read_text())]
    parts, failed = write(shell, steps, hidden)
    revision = subprocess.check_output(["git", "-C", clone, "rev-parse", "--short", "HEAD"], text=True).strip()
    head = HEAD.format(date=time.strftime("%Y-%m-%d"), revision=revision, cores=os.cpu_count())
    file.write_text(head + "\n".join(parts).rstrip() + "\n")
    return 1 if failed else 0


def write(shell: Shell, steps: list[Step], hidden: dict[str, str]) -> tuple[list[str], int]:
    """Run all steps; each gives a block of the page."""
    parts: list[str] = []
    failed = 0
    server: Any = None
    try:
        for number, step in enumerate(steps, 1):
            print(f"{number}/{len(steps)} {step.run}", file=sys.stderr, flush=True)
            began = time.monotonic()
            if step.stops or step.serves:
                stop(server)
            if step.serves:
                server, text = shell.serving(step)
                status = server.poll() or 0
            else:
                status, text = shell.finished(step)
            wrong = status != step.status
            failed += wrong
            after = f"{time.monotonic() - began:.0f} s" + (f", **exit status {status}**" if wrong else "")
            after += f", exit status {status}" if status and not wrong else ""
            parts += [
                step.say,
                "```",
                f"$ {step.run}" + (" &" if step.serves else ""),
                shown(text, step.lines, step.columns, hidden),
                "```",
            ]
            parts += [f"({after})", ""]
    finally:
        stop(server)
    return parts, failed


if __name__ == "__main__":
    sys.exit(main())
