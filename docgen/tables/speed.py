"""Load tests and paired comparisons of servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docgen.blocks import Table
from docgen.results import load, load_csv, pick, quartiles, table, within

LOADTEST = "loadtest_v2_lite/summary.json"
SHARED = "consolidation_speed/summary.json"
CAPPED = "consolidation_capped/summary.json"
PRUNED_SPEED = "pruned_speed/summary.json"
PAPERS_32 = {1: "1.05 at c = 2", 16: "1.41 at 12 to 32", 32: "1.41", 64: "1.27 at 128"}
"""Speed-up of 32 of 64 experts as the paper's text has it (arXiv 2505.03531), which has no table of it."""
HEADLINE = (2, 4, 8, 16, 32, 64, 128, 256, 512, 784)
"""Concurrencies of the README's table; docs/loadtest.md has all."""

SAME_TOKENS = "requests_with_tokens_of_first"
CLAIMS = (
    ("full_is_free", "`full` is free: plugin, no hint / SGLang without skipping", "{} of {} answers identical"),
    ("na4_by_hint", "hint `na` 4 / server with `num_experts_per_tok` 4", "{} of {}"),
    ("na2_by_hint", "hint `na` 2 / server with `num_experts_per_tok` 2", "{} of {}"),
)
MIXED = (
    ("mixed_batch_fp32", "mixed batch, fp32: 64 requests at once under 6 schedules / each alone"),
    ("mixed_batch_bf16", "the same in bf16"),
)


def throughput() -> str:
    """Total tok/s of the published load test and the speed-ups over full."""
    rows = []
    for c in HEADLINE:
        points = [load_point(c, arm) for arm in ("full", "na=4", "na=2")]
        rates = [f"{point['metrics']['total_tok_s']['median']:.0f}" for point in points]
        rows.append([str(c), *rates, *map(_speedup, points[1:])])
    return table(["c", "full (na 6), tok/s", "na 4", "na 2", "speed-up na 4", "speed-up na 2"], rows)


def beside_table8() -> str:
    """Every load beside the paper's Table 8, with what explains the speed-ups."""
    heads = ["c", "paper, na 4", "ours, na 4", "paper, na 2", "ours, na 2", "distinct experts, full / na 2"]
    published = {int(row["concurrency"]): row for row in load_csv("paper_t8_v2lite_skip_throughput.csv")}
    rows = []
    for c in (int(entry["value"]) for entry in load(LOADTEST)["loads"]):
        full, na4, na2 = (load_point(c, arm) for arm in ("full", "na=4", "na=2"))
        paper = published.get(c)
        four, two = (f"{float(paper[na]) / float(paper['na6']):.2f}" if paper else "" for na in ("na4", "na2"))
        experts = " / ".join(f"{distinct_experts(c, arm):.1f}" for arm in ("full", "na=2"))
        shares = [
            f"{full['metrics'][name]['median']:.0%}".replace("%", " %") for name in ("bandwidth_share", "compute_share")
        ]
        rows.append([str(c), four, _speedup(na4), two, _speedup(na2), experts, *shares])
    return table([*heads, "of the bandwidth, full", "of the peak, full"], rows)


def load_point(c: int, arm: str = "full", file: str = LOADTEST) -> Any:
    """One load of one curve of a load test."""
    return pick(load(file)["points"], arm=arm, load=f"c{c}")


def distinct_experts(c: int, arm: str = "full", file: str = LOADTEST) -> float:
    """Distinct experts of a layer that its decode steps touched, the median of the rounds."""
    return float(load_point(c, arm, file)["metrics"]["distinct_experts"]["median"])


def _speedup(point: Mapping[str, Any]) -> str:
    spread = point["speedup"]["total_tok_s"]
    return within(spread["median"], (spread["low"], spread["high"]))


def free_and_equal(folder: str) -> str:
    """What a hint costs beside a server that was started that way, and whether the tokens are the same.

    `folder` is that of the result files, as a link of the page reads it.
    """
    rows = []
    for name, claim, tokens in CLAIMS:
        points = load(f"{name}.json")["points"]
        second = [point for point in points if point["arm"] != points[0]["arm"]]
        ratios = [quartiles(pick(second, concurrency=c)["decode_ratio_to_first"], more=1) for c in (1, 8, 64)]
        same, asked = (sum(point[key] for point in second) for key in (SAME_TOKENS, "requests"))
        rows.append([claim, *ratios, tokens.format(same, asked), f"[{name}]({folder}/{name}.json)"])
    for name, claim in MIXED:
        six = pick(load(f"{name}.json")["points"], batch="six schedules")
        asked = six["requests"]
        same = f"{asked - six['requests_with_another_token']} of {asked}"
        rows.append([claim, "", "", "", same, f"[{name}]({folder}/{name}.json)"])
    return table(["claim", "c = 1", "c = 8", "c = 64", "tokens", "JSON"], rows)


def concurrency() -> str:
    """mini-v2 at many requests: output rate and time to first token."""
    points = load("mini_v2_concurrency.json")["points"]
    rows = []
    for c in dict.fromkeys(point["concurrency"] for point in points):
        full, fast = (pick(points, arm=f"plugin/{name}", concurrency=c) for name in ("full", "fast"))
        rates = [f"{point['output_tok_s']['median']:,.0f}" for point in (full, fast)]
        ratio = quartiles(fast["output_ratio_to_first"])
        rows.append([f"{c}", *rates, ratio, f"{1000 * full['ttft_s']['median']:.0f}"])
    return table(["c", "full, output tok/s", "fast, output tok/s", "fast / full", "TTFT of full, ms"], rows)


def bench() -> str:
    """Our CPU path beside SGLang without it and llama.cpp."""
    heads = ["na", "c", "SGLang", "llama.cpp", "ours, decode tok/s", "of the roofline", "ours / SGLang, decode"]
    heads += ["with prefill", "ours / llama.cpp, decode", "with prefill", "na 2 over na 6, of the roofline's"]
    points = load("bench/bench.json")["summary"]
    rows = []
    for na, c in sorted({(point["na"], point["concurrency"]) for point in points}, key=lambda key: (-key[0], key[1])):
        sglang, llama, ours = (pick(points, na=na, concurrency=c, server=s) for s in ("sglang", "llama.cpp", "moe-opt"))
        rates = [f"{point['decode_tok_s']['median']:.0f}" for point in (sglang, llama, ours)]
        ratios = [quartiles(point[f"ours_to_it_{kind}"]) for point in (sglang, llama) for kind in ("decode", "output")]
        gain = (
            f"{ours['speedup']['median']:.2f}, {100 * ours['speedup_of_roofline']['median']:.0f} %"
            if "speedup" in ours
            else ""
        )
        rows.append([str(na), str(c), *rates, quartiles(ours["of_roofline"]), *ratios, gain])
    return table(heads, rows)


def client_ceiling() -> str:
    """What the load client loses at many chunks a second."""
    heads = ["asked, chunks/s", "seen", "gap, ms", "ITL p50, p90, p99 off by, ms", "TPOT p50, p99 off by, ms"]
    rows = []
    for point in load("client_ceiling.json")["points"]:
        itl = ", ".join(f"{point[f'itl_{p}_error_ms']['median']:+.2f}" for p in ("p50", "p90", "p99"))
        tpot = ", ".join(f"{point[f'tpot_{p}_error_ms']['median']:+.2f}" for p in ("p50", "p99"))
        asked = [f"{point['asked_chunks_s']:,}", f"{point['chunks_s']['median']:,.0f}", f"{point['gap_ms']:.1f}"]
        rows.append(
            [
                *asked,
                itl,
                tpot,
                f"{point['client_cores']['median']:.2f}",
                f"{point['server_late_p99_ms']['median']:.1f}",
            ]
        )
    return table([*heads, "client, cores", "server late, p99 ms"], rows)


def agreement() -> str:
    """Our load client over SGLang's own, on one server in turns."""
    metrics = ("output_tok_s", "ttft_p50_ms", "tpot_p50_ms")
    rows = []
    for point in load("agreement.json")["points"]:
        ratios = [point[metric]["ratio"] for metric in metrics]
        rows.append([str(point["concurrency"]), *(within(r["median"], r["interval_95"], more=1) for r in ratios)])
    return table(["c", "output tok/s", "TTFT p50", "TPOT p50"], rows)


def pruned_speed() -> str:
    """Total tok/s of the whole model, and speed-ups with fewer experts loaded."""
    rows = []
    for c in (int(entry["value"]) for entry in load(PRUNED_SPEED)["loads"]):
        full, *pruned = (load_point(c, arm, PRUNED_SPEED) for arm in ("full", "48", "32", "16"))
        rate = f"{full['metrics']['total_tok_s']['median']:.0f}"
        rows.append([str(c), rate, *map(_speedup, pruned), PAPERS_32.get(c, "")])
    return table(["c", "64 experts, tok/s", "48", "32", "16", "paper, 32 of 64"], rows)


def consolidation_speed() -> str:
    """Total tok/s, speed-ups and distinct experts under plain skipping and under consolidation."""
    arms = ("full", "plain2", "own2", "own1")
    with_cap = {int(entry["value"]) for entry in load(CAPPED)["loads"]}
    rows = []
    for c in (int(entry["value"]) for entry in load(SHARED)["loads"]):
        curves = [(arm, SHARED) for arm in arms] + [("own1", CAPPED)] * (c in with_cap)
        full, *others = (load_point(c, arm, file) for arm, file in curves)
        rate = f"{full['metrics']['total_tok_s']['median']:.0f}"
        ratios = [*map(_speedup, others), *[""] * (len(arms) - len(others))]
        experts = [f"{distinct_experts(c, arm, file):.1f}" for arm, file in curves]
        rows.append([str(c), rate, *ratios, " / ".join(experts)])
    heads = [
        "c",
        "full, tok/s",
        "`na` 2",
        "own 2 of up to 6",
        "own 1",
        "own 1, 32 experts",
        "distinct experts, in this order",
    ]
    return table(heads, rows)


def auto_ramp() -> str:
    """Output tok/s of every profile in each stage of a ramp, and auto over the best fixed one."""
    found = load("auto_ramp.json")
    labels = list(found["stages"][0]["output_tok_s"])
    rows = []
    for stage in found["stages"]:
        rates = [f"{stage['output_tok_s'][label]['median']:.0f}" for label in labels]
        rows.append([str(stage["users"]), *rates, f"{quartiles(stage['ratio'])} of {stage['best_fixed']}"])
    return table(["requests", *labels, "auto / best fixed"], rows)


def pruned_memory() -> str:
    """Memory and start of a server with a part of its experts."""
    heads = ["experts kept", "resident", "freed", "share of the removed experts' bytes", "peak over resident"]
    rows = []
    for point in load("pruned_memory.json")["points"]:
        removed = point["freed_of_removed"]
        share = "" if removed is None else f"{100 * removed['median']:.1f} %"
        freed = "" if removed is None else f"{point['freed_mb']['median']:.0f} MiB"
        times = [f"{point['weights_s']['median']:.1f} s", f"{point['ready_s']['median']:.0f} s"]
        if removed is not None:
            ratios = (point[f"{name}_ratio"]["median"] for name in ("weights_s", "ready_s"))
            times = [f"{time} ({ratio:.2f})" for time, ratio in zip(times, ratios, strict=True)]
        memory = [f"{point[name]['median']:.0f} MiB" for name in ("resident_mb", "peak_over_resident_mb")]
        rows.append([str(point["kept"]), memory[0], freed, share, memory[1], *times])
    return table([*heads, "build and read weights", "until it answers"], rows)


TABLES: dict[str, Table] = {
    "throughput": throughput,
    "beside_table8": beside_table8,
    "free_and_equal": free_and_equal,
    "concurrency": concurrency,
    "bench": bench,
    "client_ceiling": client_ceiling,
    "agreement": agreement,
    "pruned_memory": pruned_memory,
    "pruned_speed": pruned_speed,
    "consolidation_speed": consolidation_speed,
    "auto_ramp": auto_ramp,
}
