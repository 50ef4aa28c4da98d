"""docs/loadtest.md."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import Any

from docgen.figures.lookups import ends, explained, requests, speedup
from docgen.results import load, load_csv, pick
from docgen.sentences import Sentence
from docgen.tables.speed import LOADTEST, distinct_experts, load_point
from sglang_moe_opt.perfmodel.hardware import find_hardware

PAGE = "docs/loadtest.md"
OUTPUT_LEN, TOKENS = 24, 48
"""Of a request of the published load test: what it generates, and that with its prompt."""


def _explanation() -> Any:
    return load(LOADTEST)["explanation"]


def _knees() -> Mapping[str, float]:
    knees = _explanation()["knees"]
    return {"full": knees["full"], "two": knees["na=2"]}


def _full(name: str, *, above: bool) -> list[float]:
    """A share of full's steps in percent, at the loads above its knee or below."""
    points = [found for found in _explanation()["points"] if found["arm"] == "full"]
    knee = round(_explanation()["knees"]["full"])
    return [100 * found[name] for found in points if (found["batch"] > knee if above else found["batch"] < knee)]


def _below_the_knee() -> Mapping[str, float]:
    bandwidth, peak = (ends(_full(name, above=False)) for name in ("bandwidth_share", "compute_share"))
    grown = explained(8)["grown"]
    return {
        **bandwidth,
        "peak_low": peak["low"],
        "peak_high": peak["high"],
        "bytes": grown["bytes"],
        "step": grown["step"],
    }


def _above_the_knee() -> Mapping[str, float]:
    return {"bandwidth": min(_full("bandwidth_share", above=True)), **ends(_full("compute_share", above=True))}


def _two_experts() -> Mapping[str, float]:
    middle = ends(explained(c, "na=2")["bytes_ratio"] for c in (48, 64))
    return {
        "eight": speedup(8, "na=2"),
        "eight_bytes": explained(8, "na=2")["bytes_ratio"],
        "middle": median(speedup(c, "na=2") for c in (48, 64)),
        "middle_low": middle["low"],
        "middle_high": middle["high"],
        "flops": explained(256, "na=2")["flops_ratio"],
        **ends(speedup(c, "na=2") for c in (256, 384, 512, 768, 784)),
    }


def _published() -> dict[int, dict[str, float]]:
    """The paper's speed-ups by concurrency and arm."""
    rows = load_csv("paper_t8_v2lite_skip_throughput.csv")
    return {
        int(row["concurrency"]): {f"na={na}": float(row[f"na{na}"]) / float(row["na6"]) for na in (4, 2)}
        for row in rows
    }


def _agree() -> Mapping[str, float]:
    """Up to 64 at a time: how many of the paper's speed-ups lie in our intervals, and how far off others are."""
    misses = []
    for c, arms in _published().items():
        for arm, published in arms.items() if c <= 64 else ():
            ours = load_point(c, arm)["speedup"]["total_tok_s"]
            misses.append(max(ours["low"] - published, published - ours["high"], 0))
    return {"inside": misses.count(0), "asked": len(misses), "miss": max(misses)}


def _beyond() -> Mapping[str, float]:
    loads = [int(entry["value"]) for entry in load(LOADTEST)["loads"] if entry["value"] > 96]
    return {
        "ours": median(speedup(c, "na=2") for c in loads),
        "paper": min(arms["na=2"] for c, arms in _published().items() if c > 96),
    }


def _arithmetic() -> Mapping[str, float]:
    full = [found for found in _explanation()["points"] if found["arm"] == "full" and found["bound_by"] == "compute"]
    return {
        "c": min(found["batch"] for found in full),
        "flops": explained(256, "na=2")["flops_ratio"],
        **ends(100 * found["compute_share"] for found in full),
    }


def _gpu() -> Mapping[str, float]:
    """A GPU of the paper's kind over the cores of the load test, rounded to tens and ones."""
    gpu, cpu = find_hardware("a800-pcie"), _explanation()["runs"]["loadtest_v2_lite"]
    return {
        "flops": round(gpu.flops_s / cpu["flops_s"], -1),
        "bandwidth": gpu.bandwidth_bytes_s / cpu["bandwidth_bytes_s"],
    }


def _prompts() -> Mapping[str, float]:
    """What 128 answers take beside their decode steps, in percent."""
    whole_s = 128 * TOKENS / load_point(128)["metrics"]["total_tok_s"]["median"]
    return {"share": 100 * (1 - (OUTPUT_LEN - 1) * explained(128)["step_s"] / whole_s)}


def _agreement() -> Mapping[str, float]:
    points = load("agreement.json")["points"]

    def off(c: int, metric: str) -> float:
        return 100 * abs(float(pick(points, concurrency=c)[metric]["ratio"]["median"]) - 1)

    return {
        "rate": max(off(found["concurrency"], "output_tok_s") for found in points),
        "ttft": off(2, "ttft_p50_ms"),
        "tpot2": off(2, "tpot_p50_ms"),
        "tpot128": off(128, "tpot_p50_ms"),
    }


def _from_run_to_run() -> Mapping[str, float]:
    """The largest difference of a client's run from its next one, in percent."""

    def largest(*metrics: str) -> float:
        runs: list[list[float]] = [
            found[metric][client]["all"]
            for found in load("agreement.json")["points"]
            for metric in metrics
            for client in ("ours", "bench_serving")
        ]
        return max(100 * abs(b / a - 1) for run in runs for a, b in pairwise(run))

    return {"rate": largest("output_tok_s"), "latency": largest("ttft_p50_ms", "tpot_p50_ms")}


SENTENCES = (
    Sentence(PAGE, "full the knee is at {full:.0f} requests, under na = 2 at {two:.0f}.", _knees),
    Sentence(
        PAGE,
        "full's steps reach {low:.0f} to {high:.0f} % of the bandwidth and {peak_low:.0f} to {peak_high:.0f} % of the"
        " peak, and take as much longer as they read more bytes (c = 4 to 8: {bytes:.2f} times the bytes, {step:.2f}"
        " times as long).",
        _below_the_knee,
    ),
    Sentence(
        PAGE,
        "the share of the bandwidth falls to {bandwidth:.0f} %, that of the peak is {low:.0f} to {high:.0f} %,",
        _above_the_knee,
    ),
    Sentence(
        PAGE,
        "na = 2 gains {eight:.2f} at c = 8, where its steps read {eight_bytes:.2f} of full's bytes, {middle:.2f} at 48"
        " to 64, where they read {middle_low:.2f} to {middle_high:.2f}, and {low:.1f} to {high:.1f} from 256 on, where"
        " they read the same and compute {flops:.2f} of it.",
        _two_experts,
    ),
    Sentence(
        PAGE,
        "41 minutes on 2 cores (by the clock, not in the file), {requests:,} requests, none failed",
        requests,
    ),
    Sentence(
        PAGE,
        "of the paper's {asked} speed-ups there, {inside} lie within our intervals, the others at most {miss:.2f}"
        " beside them.",
        _agree,
    ),
    Sentence(
        PAGE,
        "a step touches: {few:.1f} of 64 at c = 2 under full, {many:.1f} at c = 64.",
        lambda: {"few": distinct_experts(2), "many": distinct_experts(64)},
    ),
    Sentence(
        PAGE,
        "whatever the schedule ({experts:.0f} of 64 at na = 2).",
        lambda: {"experts": distinct_experts(48, "na=2")},
    ),
    Sentence(PAGE, "**Beyond 96 ours stays at {ours:.1f} where the paper's falls to {paper:.2f}**", _beyond),
    Sentence(
        PAGE,
        "From c = {c:.0f} on the CPU is bound by arithmetic ({low:.0f} to {high:.0f} % of its peak), of which na = 2"
        " needs {flops:.2f}:",
        _arithmetic,
    ),
    Sentence(
        PAGE,
        "has some {flops:.0f} times the arithmetic for {bandwidth:.0f} times the bandwidth",
        _gpu,
    ),
    Sentence(PAGE, "a point of 128 at a time spends {share:.0f} % of its time on prompts", _prompts),
    Sentence(
        PAGE,
        "Throughput agrees within {rate:.0f} %. Of the latencies TTFT at 2 is {ttft:.1f} % off, TPOT {tpot2:.1f} %"
        " at 2 and {tpot128:.1f} % at 128;",
        _agreement,
    ),
    Sentence(
        PAGE,
        "differs from its own next one by up to {rate:.0f} % in throughput and {latency:.0f} % in latency",
        _from_run_to_run,
    ),
)
