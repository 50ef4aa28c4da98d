"""Points from files of SGLang's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench_serving import KEYS, read
from loadtest.metrics import BY_TAG
from sglang_moe_opt.fields import FieldError

RESULT: dict[str, Any] = {
    "tag": None,
    "backend": "sglang",
    "request_rate": float("inf"),
    "max_concurrency": 16,
    "duration": 12.5,
    "completed": 64,
    "request_throughput": 5.12,
    "input_throughput": 163.84,
    "output_throughput": 1310.72,
    "total_throughput": 1474.56,
    "mean_e2e_latency_ms": 3000.0,
    "median_e2e_latency_ms": 2990.0,
    "p99_e2e_latency_ms": 3500.0,
    "mean_ttft_ms": 120.0,
    "median_ttft_ms": 110.0,
    "p99_ttft_ms": 300.0,
    "median_tpot_ms": 11.0,
    "p90_itl_ms": 14.0,
    "median_itl_ms": 11,
    "accept_length": None,
}


def written(file: Path, *results: Any) -> Path:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in results))
    return file


def test_numbers_come_under_our_names(tmp_path: Path) -> None:
    (point,) = read(written(tmp_path / "sglang.jsonl", RESULT))
    assert (point.source, point.concurrency) == ("sglang", 16)
    assert point.values == {
        "total_tok_s": 1474.56,
        "output_tok_s": 1310.72,
        "input_tok_s": 163.84,
        "requests_s": 5.12,
        "ttft_mean_ms": 120,
        "ttft_p50_ms": 110,
        "ttft_p99_ms": 300,
        "tpot_p50_ms": 11,
        "itl_p50_ms": 11,
        "itl_p90_ms": 14,
        "e2e_mean_ms": 3000,
        "e2e_p50_ms": 2990,
        "e2e_p99_ms": 3500,
    }
    assert set(KEYS) <= set(BY_TAG)


def test_every_line_is_a_point_and_a_tag_names_it(tmp_path: Path) -> None:
    more = {**RESULT, "max_concurrency": 32, "tag": "stock"}
    points = read(written(tmp_path / "a.jsonl", RESULT, "", more))
    assert [(point.source, point.concurrency) for point in points] == [("a", 16), ("stock", 32)]


def test_older_files_lack_the_total(tmp_path: Path) -> None:
    old = {key: value for key, value in RESULT.items() if key != "total_throughput"}
    assert read(written(tmp_path / "a.jsonl", old))[0].values["total_tok_s"] == pytest.approx(1474.56)


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    values = {**RESULT, "median_ttft_ms": float("nan"), "p99_ttft_ms": float("inf"), "mean_ttft_ms": True}
    found = read(written(tmp_path / "a.jsonl", values))[0].values
    assert not {"ttft_p50_ms", "ttft_p99_ms", "ttft_mean_ms"} & found.keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"line 2: got '{broken', allowed: a JSON object"),
        ("[1]", r"line 2: got \[1\], allowed: a JSON object"),
        ({**RESULT, "max_concurrency": None}, r"line 2: max_concurrency: got None, allowed: a run with --max-conc"),
        ({**RESULT, "max_concurrency": 0}, r"line 2: max_concurrency: got 0"),
        ({"max_concurrency": 4}, r"line 2: got .* allowed: a result with total_throughput"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        read(written(tmp_path / "a.jsonl", RESULT, line))
    assert "a.jsonl" in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="an empty file"):
        read(written(tmp_path / "a.jsonl"))
