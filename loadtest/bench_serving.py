"""Results of SGLang's own client (`python -m sglang.bench_serving --output-file FILE`) as points beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from loadtest.analysis import Imported
from sglang_moe_opt.fields import FieldError, is_int, is_number

KEYS: Final[dict[str, str]] = {
    "total_tok_s": "total_throughput",
    "output_tok_s": "output_throughput",
    "input_tok_s": "input_throughput",
    "requests_s": "request_throughput",
    **{
        f"{tag}_{ours}_ms": f"{theirs}_{name}_ms"
        for tag, name in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2e_latency"))
        for ours, theirs in (("mean", "mean"), ("p50", "median"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"))
    },
}
"""Our metrics by their names in its file (sglang/benchmark/serving.py)."""


def read(file: Path) -> list[Imported]:
    """One point for each line, called by its `--tag` or else by the file's name.

    Raises:
        FieldError: naming file and line, where one is no result or was run without --max-concurrency.
        OSError: where the file cannot be read.
    """
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    points = [_point(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not points:
        raise FieldError(str(file), "an empty file", "lines that bench_serving --output-file writes")
    return points


def _point(file: Path, number: int, line: str) -> Imported:
    where = f"{file}: line {number}"
    try:
        result = json.loads(line)
    except ValueError:
        raise FieldError(where, line, "a JSON object as bench_serving --output-file writes") from None
    if not isinstance(result, dict):
        raise FieldError(where, result, "a JSON object as bench_serving --output-file writes")
    concurrency = result.get("max_concurrency")
    if not is_int(concurrency) or concurrency < 1:
        raise FieldError(f"{where}: max_concurrency", concurrency, "a run with --max-concurrency")
    values = _values(result)
    if not values:
        raise FieldError(where, line, f"a result with {', '.join(list(KEYS.values())[:2])}, ...")
    return Imported(str(result.get("tag") or file.stem), concurrency, values)


def _values(result: Mapping[str, Any]) -> dict[str, float]:
    values = {ours: float(result[theirs]) for ours, theirs in KEYS.items() if is_number(result.get(theirs))}
    if "total_tok_s" not in values and {"input_tok_s", "output_tok_s"} <= values.keys():  # older files lack it
        values["total_tok_s"] = values["input_tok_s"] + values["output_tok_s"]
    return values
