"""docs/open-questions.md, batch-aware consolidation."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from docgen.figures.lookups import loss, sharing_loss, speedup
from docgen.results import half, load
from docgen.sentences import Sentence
from docgen.tables.speed import CAPPED, SHARED, distinct_experts

PAGE = "docs/open-questions.md"
MODELS = ("mini_v2", "mini_v3")


def _losses(arms: Mapping[str, str], size: int = 32) -> Mapping[str, float]:
    return {f"{name}_{model[-1]}": sharing_loss(model, size, arm) for name, arm in arms.items() for model in MODELS}


def _gains() -> Mapping[str, float]:
    values: dict[str, float] = {}
    for c in (16, 32):
        for arm in ("own1", "own2"):
            values[f"{arm}_{c}"] = speedup(c, arm, SHARED)
        for arm in ("full", "own1"):
            values[f"{arm}_experts_{c}"] = distinct_experts(c, arm, SHARED)
    values |= {f"{arm}_64": speedup(64, arm, SHARED) for arm in ("own1", "own2")}
    values["capped"] = speedup(32, "own1", CAPPED)
    return values


def _predicted() -> Mapping[str, float]:
    """Percent by which the cost model's speed-ups of the consolidating arms are off."""
    points = [point for file in (SHARED, CAPPED) for point in load(file)["explanation"]["points"]]
    pairs = [(p["predicted_speedup"], p["measured_speedup"]) for p in points if p["arm"] in ("own1", "own2")]
    errors = [100 * abs(predicted / measured - 1) for predicted, measured in pairs]
    return {"median": median(errors), "most": max(errors)}


def _cloze() -> Mapping[str, float]:
    """How cloze changes: of what shares by more than one own expert alone, and of that on mini-v3."""
    found = {
        (model, size, row["arm"]): row["cloze_points"]
        for model in MODELS
        for size, rows in load(f"consolidation_{model}.json")["by_batch"].items()
        for row in rows
        if row["arm"].startswith("own") and "cloze_points" in row
    }
    alone = {(model, size): found.pop((model, size, "own 1")) for model in MODELS for size in ("16", "32")}
    below = [change["value"] for change in found.values() if change["interval"][1] < 0]
    return {
        "settings": len(found),
        "below": len(below),
        "worst": min(below),
        "wide": max(half(change["interval"]) for change in found.values()),
        **{f"alone_{size}": -alone["mini_v3", size]["value"] for size in ("16", "32")},
    }


SENTENCES = (
    Sentence(
        PAGE,
        "decodes {own1_16:.1f} times as fast at 16 requests and {own1_32:.1f} times at 32, as a step reads"
        " {own1_experts_16:.0f} and {own1_experts_32:.0f} distinct experts instead of {full_experts_16:.0f} and"
        " {full_experts_32:.0f}. With two own experts it is {own2_16:.2f} and {own2_32:.2f}. With one and a cap of 32"
        " it is {capped:.2f} at 32 requests. At 64 one own expert gains {own1_64:.2f} (as plain `na` 2 does), two"
        " {own2_64:.2f}",
        _gains,
    ),
    Sentence(
        PAGE,
        "its speed-ups of two and one own experts and of the cap are off by {median:.1f} % in the median and"
        " {most:.1f} % at most.",
        _predicted,
    ),
    Sentence(
        PAGE,
        "one own expert costs {own1_2:.1f} % of bits per byte on mini-v2 and {own1_3:.1f} % on mini-v3, where plain"
        " `na` 1, which touches as many experts, costs {na1_2:.1f} and {na1_3:.0f} %, and `na` 2"
        " {na2_2:.1f} and {na2_3:.0f} %; two own experts cost {own2_2:.1f} and {own2_3:.1f} %. One own expert"
        " with a cap of 32 costs {cap_2:.1f} and {cap_3:.1f} %",
        lambda: _losses({"own1": "own 1", "na1": "na=1", "na2": "na=2", "own2": "own 2", "cap": "own 1 cap 32"}),
    ),
    Sentence(
        PAGE,
        "(16 a step: {own:.2f} against {plain:.2f} %)",
        lambda: {"own": sharing_loss("mini_v2", 16, "own 2"), "plain": sharing_loss("mini_v2", 16, "na=2")},
    ),
    Sentence(
        PAGE,
        "still more than two own experts do, {few:.1f} and {many:.1f} %.",
        lambda: {size: sharing_loss("mini_v3", c, "own 2") for size, c in (("few", 16), ("many", 32))},
    ),
    Sentence(
        PAGE,
        "With fitted factors `na` 2 loses {fitted:.1f} % there",
        lambda: {"fitted": loss("magnitude_mini_v3", "na2-fit")},
    ),
    Sentence(
        PAGE,
        "one own expert is as good as two on mini-v2 ({one_2:.2f} and {two_2:.2f} %), on mini-v3 it loses more"
        " ({one_3:.2f} and {two_3:.2f} %).",
        lambda: _losses({"one": "own 1 cap 32", "two": "own 2 cap 32"}, 16),
    ),
    Sentence(
        PAGE,
        "of {settings} settings with two or three own experts or a cap, {below:word} has an interval of its change that"
        " lies below 0 ({worst:+.1f} points); intervals are up to {wide:.1f} points wide to each side. One own expert"
        " without a cap loses {alone_16:.1f} and {alone_32:.1f} points on mini-v3.",
        _cloze,
    ),
)
