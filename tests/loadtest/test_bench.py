"""Benchmark summaries: paired ratios, the roofline, and how llama.cpp is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from loadtest import llama_cpp
from loadtest.bench_report import LLAMA, OURS, SGLANG, Phase, Sample, summary, write_markdown, write_plot
from loadtest.options import numbers
from loadtest.results import ratios, spread, write_json
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.shapes import ShapeSpec

LITE = MoEShape.from_config(ShapeSpec.parse("deepseek-v2-lite@5").config())
BANDWIDTH = 40e9
BESIDE_SGLANG = Phase(SGLANG, 6)


def sample(server: str, step_s: float, *, phase: Phase = BESIDE_SGLANG, na: int = 6, turn: int = 1) -> Sample:
    return Sample(
        phase=phase,
        server=server,
        na=na,
        concurrency=1,
        round=turn,
        output_len=64,
        first_s=0.1,
        all_s=0.1 + 63 * step_s,
        distinct_experts=float(na) if server == OURS else None,
        read_bandwidth=BANDWIDTH,
        peak_flops=800e9,
    )


def test_ratios_are_paired_and_the_roofline_is_that_of_the_round() -> None:
    steps = {
        Phase(SGLANG, 6): {SGLANG: [0.06, 0.08, 0.04], OURS: [0.03, 0.04, 0.02]},
        Phase(LLAMA, 6): {LLAMA: [0.044, 0.033, 0.066], OURS: [0.04, 0.03, 0.06]},
    }
    samples = [
        sample(server, step, phase=phase, turn=turn)
        for phase, servers in steps.items()
        for server, rounds in servers.items()
        for turn, step in enumerate(rounds)
    ]
    points = {p["server"]: p for p in summary(samples, LITE, input_len=0)}
    assert points[SGLANG]["ours_to_it_decode"]["all"] == [2.0, 2.0, 2.0]
    assert points[LLAMA]["ours_to_it_decode"]["median"] == pytest.approx(1.1)
    assert len(points[OURS]["decode_tok_s"]["all"]) == 6
    assert points[OURS]["decode_tok_s"]["quartiles"][1] == pytest.approx(1 / 0.03)
    cache = 32 * 5 * 576 * 2
    roof = BANDWIDTH / (LITE.weight_bytes_per_token([6] * 4)["total"] + cache)
    assert points[OURS]["roofline_tok_s"]["median"] == pytest.approx(roof)
    assert points[OURS]["of_roofline"]["quartiles"][1] == pytest.approx(1 / 0.03 / roof)
    assert points[SGLANG]["distinct_experts"]["median"] == 6  # as our server counted


def test_the_speed_up_is_taken_from_one_phase() -> None:
    samples = [
        sample(OURS, 0.05),
        sample(OURS, 0.02, phase=Phase(SGLANG, 2), na=2),
        sample(OURS, 0.03, phase=Phase(SGLANG, 2), na=6),
    ]
    full, fast = summary(samples, LITE, input_len=0)
    assert "speedup" not in full
    assert fast["speedup_over_na"] == 6
    assert fast["speedup"]["median"] == pytest.approx(1.5)
    allowed = LITE.weight_bytes_per_token([6] * 4)["total"] / LITE.weight_bytes_per_token([2] * 4)["total"]
    assert fast["speedup_of_roofline"]["median"] == pytest.approx(1.5 / allowed, rel=0.01)


def test_the_markdown_table(tmp_path: Path) -> None:
    result = {
        "model": "m",
        "command": "c",
        "time": "t",
        "machine": {"cores": 2, "cpu": "x"},
        "summary": summary([sample(OURS, 0.03), sample(SGLANG, 0.06)], LITE, input_len=32),
    }
    write_markdown(result, tmp_path / "bench.md")
    rows = (tmp_path / "bench.md").read_text().splitlines()[-2:]
    assert rows[0].startswith("| 6 | 1 | moe-opt | 33 |") and rows[0].endswith("|  |  |")
    assert rows[1].startswith("| 6 | 1 | sglang | 17 |") and "| 2.00 (2.00-2.00) |" in rows[1]


def test_the_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = summary([sample(OURS, 0.03), sample(SGLANG, 0.06)], LITE, input_len=32)
    write_plot({"summary": points}, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_llama_cpp_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "llama-server"
    monkeypatch.setenv("LLAMA_SERVER", str(binary))
    with pytest.raises(FileNotFoundError, match="LLAMA_SERVER"):
        llama_cpp.find()
    binary.write_text("")
    assert llama_cpp.find() == binary
    argv = llama_cpp.command(binary, tmp_path / "m.gguf", port=1, slots=64, context=100, na=2)
    assert argv[argv.index("-c") + 1] == "6400"
    assert "deepseek2.expert_used_count=int:2" in argv


@pytest.mark.parametrize("text", ["", "x", "0", "7", "1,,2", "-1", "1.5"])
def test_numbers_out_of_range_are_named(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"--na: got .* whole numbers from 1 to 6"):
        numbers("--na", text, 6)
    assert numbers("--na", "6, 2", 6) == [6, 2]


def test_results(tmp_path: Path) -> None:
    assert ratios([2, 9], [1, 3]) == [2, 3]
    with pytest.raises(ValueError, match="argument 2"):
        ratios([1], [1, 2])
    assert spread([3, 1, 2])["median"] == 2
    write_json(tmp_path / "new" / "a.json", {"b": 1})
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["a.json"]
