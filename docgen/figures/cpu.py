"""docs/cpu.md."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from docgen.figures.lookups import ends
from docgen.results import load, pick
from docgen.sentences import Sentence
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.roofline import decode_step
from sglang_moe_opt.shapes import ShapeSpec

PAGE = "docs/cpu.md"
BENCH = "bench/bench.json"
FAST_HOST = 52e9
"""Bytes per second above which the page calls the host fast."""


def _point(server: str, na: int, c: int) -> Any:
    return pick(load(BENCH)["summary"], server=server, na=na, concurrency=c)


def _host(beside: str, na: int) -> list[float]:
    """GB/s while ours ran beside a server, the median for each concurrency."""
    found: dict[int, list[float]] = {}
    for sample in load(BENCH)["samples"]:
        if (sample["server"], sample["na"], sample["phase"]) == ("moe-opt", na, {"beside": beside, "na": na}):
            found.setdefault(sample["concurrency"], []).append(sample["read_bandwidth"] / 1e9)
    return [median(samples) for samples in found.values()]


def _bandwidths() -> Mapping[str, float]:
    slow = ends(_host("sglang", 6) + _host("sglang", 2) + _host("llama.cpp", 2))
    fast = ends(_host("llama.cpp", 6))
    return {"slow_low": slow["low"], "slow_high": slow["high"], "fast_low": fast["low"], "fast_high": fast["high"]}


def _starts() -> Mapping[str, float]:
    values: dict[str, float] = {}
    for short, server in (("ours", "moe-opt"), ("sglang", "sglang"), ("llama", "llama.cpp")):
        loads = [entry for entry in load(BENCH)["loads"] if entry["server"] == server]
        for name, numbers in (("gb", [e["memory_bytes"] / 1e9 for e in loads]), ("s", [e["load_s"] for e in loads])):
            values |= {f"{short}_{name}_low": min(numbers), f"{short}_{name}_high": max(numbers)}
    return values


def _one_request() -> Mapping[str, float]:
    """Ours at na 6: ours ran beside SGLang first, on a slow host, and then beside llama.cpp on a fast one."""
    ours = _point("moe-opt", 6, 1)
    shares = ours["of_roofline"]["all"]
    rounds = len(shares) // 2
    return {
        "step_ms": 1000 / ours["decode_tok_s"]["median"],
        "slow": 100 * median(shares[:rounds]),
        "fast": 100 * median(shares[rounds:]),
    }


def _many_requests() -> Mapping[str, float]:
    points = [_point("sglang", na, 64) for na in (6, 2)]
    ratios = ends(point[f"ours_to_it_{kind}"]["median"] for point in points for kind in ("decode", "output"))
    rounds = zip(points[0]["read_bandwidth_gb_s"]["all"], points[0]["ours_to_it_output"]["all"], strict=True)
    fast = [ratio for gb_s, ratio in rounds if gb_s > FAST_HOST / 1e9]
    ours = _point("moe-opt", 6, 64)
    return {
        **ratios,
        "rounds": len(fast),
        "fast_low": min(fast),
        "fast_high": max(fast),
        "sum": 100 * ours["of_roofline_without_overlap"]["median"],
        "peak": ours["peak_gflop_s"]["median"] / 1000,
    }


def _prefill() -> Mapping[str, float]:
    """Percent of the peak while 64 prompts are computed, of which the head has the last token alone."""
    bench = load(BENCH)
    shape = MoEShape.from_config(ShapeSpec.parse(bench["model"].removeprefix("shape:")).config())
    tokens = 64 * bench["input_len"]
    shares = []
    for na in (6, 2):
        ours = _point("moe-opt", na, 64)
        every = decode_step(shape, tokens=tokens, na=na, distinct_experts=0, context=0).flops
        flops = every - 2 * (tokens - 64) * shape.vocab_size * shape.hidden_size
        shares.append(100 * flops / ours["prefill_s"]["median"] / (1e9 * ours["peak_gflop_s"]["median"]))
    return {"six": shares[0], "two": shares[1]}


SENTENCES = (
    Sentence(
        PAGE,
        "the host gave {slow_low:.0f} to {slow_high:.0f} GB/s while ours ran beside SGLang and beside llama.cpp"
        " at na = 2, and {fast_low:.0f} to {fast_high:.0f} GB/s beside llama.cpp at na = 6.",
        _bandwidths,
    ),
    Sentence(
        PAGE,
        "ours {ours_gb_low:.1f} to {ours_gb_high:.1f} GB, SGLang {sglang_gb_low:.1f} to {sglang_gb_high:.1f} GB,"
        " llama.cpp {llama_gb_high:.1f} GB",
        _starts,
    ),
    Sentence(
        PAGE,
        "ours {ours_s_low:.0f} to {ours_s_high:.0f} s, SGLang {sglang_s_low:.0f} to {sglang_s_high:.0f} s.",
        _starts,
    ),
    Sentence(PAGE, "1.45 ms of a step of {step_ms:.0f} ms", _one_request),
    Sentence(
        PAGE,
        "the roofline is met to {fast:.0f} % at na = 6 where the host is fast, and to {slow:.0f} % where it is slow.",
        _one_request,
    ),
    Sentence(
        PAGE,
        "**64 at a time is {low:.1f} to {high:.1f} times SGLang, not 2 times, where the host is slow.** Of the five"
        " rounds {rounds:word} had more than 52 GB/s: there it was {fast_low:.1f} to {fast_high:.1f} times, prefill"
        " included. A step takes as long as reading plus computing ({sum:.0f} % of that sum)",
        _many_requests,
    ),
    Sentence(PAGE, "the `amx`-less peak of {peak:.1f} TFLOP/s itself", _many_requests),
    Sentence(PAGE, "of which prefill reaches {six:.0f} % (at na = 2 {two:.0f} %).", _prefill),
)
