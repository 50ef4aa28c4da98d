"""README.md."""

from __future__ import annotations

from collections.abc import Mapping

from docgen.figures.lookups import (
    distilled,
    ends,
    guessed,
    loss,
    parameters,
    requests,
    sharing_loss,
    six_benchmarks,
    training,
)
from docgen.results import load
from docgen.sentences import Sentence
from docgen.tables.speed import CAPPED, LOADTEST, distinct_experts, load_point

PAGE = "README.md"


def _bandwidth() -> Mapping[str, float]:
    points = load(LOADTEST)["explanation"]["points"]
    return ends(point["ceilings"]["bandwidth_bytes_s"] / 1e9 for point in points)


def _ours_over_others() -> Mapping[str, float]:
    ratios: dict[str, list[float]] = {"sglang": [], "llama.cpp": [], "moe-opt": []}
    for other in load("bench/bench.json")["summary"]:
        if other["server"] != "moe-opt":
            ratios[other["server"]].append(other["ours_to_it_decode"]["median"])
    llama = ends(ratios["llama.cpp"])
    return {**ends(ratios["sglang"]), "least": llama["low"], "most": llama["high"]}


def _pairs() -> Mapping[str, int]:
    names = {"free": "full_is_free", "four": "na4_by_hint", "two": "na2_by_hint"}
    return {field: load(f"{name}.json")["pairs"] for field, name in names.items()}


SENTENCES = (
    Sentence(
        PAGE,
        "it is {median:.2f} ({low:.2f}-{high:.2f}) times as fast as full at 32 requests with {experts:.0f} distinct"
        " experts a step",
        lambda: {
            **load_point(32, "own1", CAPPED)["speedup"]["total_tok_s"],
            "experts": distinct_experts(32, "own1", CAPPED),
        },
    ),
    Sentence(
        PAGE,
        "such sharing costs {v2:.1f} % of bits per byte on mini-v2 and {v3:.1f} % on mini-v3 (",
        lambda: {f"v{model[-1]}": sharing_loss(model, 32, "own 1 cap 32") for model in ("mini_v2", "mini_v3")},
    ),
    Sentence(PAGE, "speed-ups paired by round with 95 % intervals. {requests:,} requests, none failed", requests),
    Sentence(PAGE, "memory bandwidth drifts between {low:.0f} and {high:.0f} GB/s within minutes", _bandwidth),
    Sentence(
        PAGE,
        "our CPU path decodes {low:.1f} to {high:.1f} times as fast as SGLang without it, and"
        " {least:.2f} to {most:.1f} times",
        _ours_over_others,
    ),
    Sentence(PAGE, "interleaved, medians of {free}, {four} and {two} pairs with quartiles", _pairs),
    Sentence(
        PAGE,
        "trained here on {tokens:.0f} M tokens each",
        lambda: {"tokens": training("mini-v3")["tokens"] / 1e6},
    ),
    Sentence(
        PAGE,
        "leaving out a third costs {third:.2f} % of bits per byte, two thirds {two:.1f} %.",
        lambda: {"third": loss("mini_v2", "na4"), "two": loss("mini_v2", "na2")},
    ),
    Sentence(
        PAGE,
        "3 of 8 experts cost {three:.0f} %, 1 of 8 {one:.0f} %.",
        lambda: {"three": loss("mini_v3", "na3"), "one": loss("mini_v3", "na1")},
    ),
    Sentence(
        PAGE,
        "on {v2:word} (mini-v2) and {v3:word} (mini-v3) of the six even `full` is not better than guessing",
        lambda: {"v2": guessed("mini_v2"), "v3": guessed("mini_v3")},
    ),
    Sentence(PAGE, "WinoGrande ({items:,} items)", six_benchmarks),
    Sentence(
        PAGE,
        "Distilling took {v2:.1f} and {v3:.0f} M tokens, {low:.0f} to {high:.0f} % of the models' training.",
        distilled,
    ),
    Sentence(PAGE, "The mini models are small ({parameters:.0f} M parameters)", parameters),
)
