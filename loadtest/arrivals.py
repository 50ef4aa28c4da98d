"""When the requests of an open loop arrive: at random, or as a trace recorded them. Pure."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from sglang_moe_opt.fields import FieldError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Of the Azure LLM inference traces."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when, in seconds from the beginning, and its lengths; 0 takes those of the prompts."""

    at: float
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Trace:
    """A stretch of a trace, and how many of its requests were cut to the longest lengths allowed."""

    arrivals: tuple[Arrival, ...]
    clipped: int


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times below `seconds` with independent exponential gaps, `rate` a second on average."""
    random = np.random.default_rng(seed)
    times: list[float] = []
    now = random.exponential(1 / rate)
    while now < seconds:
        times.append(float(now))
        now += random.exponential(1 / rate)
    return times


def trace(file: str | Path, speed: float, seconds: float, max_input: int, max_output: int) -> Trace:
    """The first `seconds` of a recorded trace, replayed `speed` times as fast.

    Args:
        file: CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens.
        speed: 2 halves the times between arrivals.
        seconds: of the replay.
        max_input, max_output: longer prompts and answers are cut to these.

    Raises:
        ValueError: naming file and line where it cannot be read.
    """
    arrivals, clipped, first, before = [], 0, None, 0.0
    for number, row in _rows(Path(file)):
        try:
            when = _time(row["TIMESTAMP"])
            asked, answered = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (ValueError, TypeError):
            raise FieldError(f"{file}: line {number}", row, f"values of {', '.join(COLUMNS)}") from None
        first = when if first is None else first
        at = (when - first) / speed
        if at < before:
            raise FieldError(f"{file}: line {number}", row["TIMESTAMP"], "times in order")
        before = at
        if at >= seconds:
            break
        cut = min(asked, max_input), min(answered, max_output)
        clipped += cut != (asked, answered)
        arrivals.append(Arrival(at, max(1, cut[0]), max(1, cut[1])))
    if not arrivals:
        raise ValueError(f"--trace: {file} has no request, allowed: a file with at least one request")
    return Trace(tuple(arrivals), clipped)


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with the numbers of their lines."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise FieldError(f"{file}: line 1", reader.fieldnames, f"a column {missing[0]}")
            return [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise ValueError(f"--trace: {file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"--trace: {file} is not UTF-8") from None


def _time(text: str) -> float:
    """Seconds; the traces have seven digits after the point, one more than Python reads."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).replace(tzinfo=UTC).timestamp()
