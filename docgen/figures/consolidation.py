"""docs/open-questions.md, batch-aware consolidation."""

from __future__ import annotations

from collections.abc import Mapping

from docgen.figures.lookups import point, speedup
from docgen.results import load, pick
from docgen.sentences import Sentence

PAGE = "docs/open-questions.md"
SPEED = "consolidation_speed/summary.json"
MODELS = ("mini_v2", "mini_v3")


def _loss(model: str, size: int, arm: str) -> float:
    """Percent of bits per byte over the full model, so many requests decoding side by side."""
    found = pick(load(f"consolidation_{model}.json")["by_batch"][str(size)], arm=arm)
    return float(found["change_percent"]["value"])


def _losses(arms: Mapping[str, str]) -> Mapping[str, float]:
    return {f"{name}_{model[-1]}": _loss(model, 32, arm) for name, arm in arms.items() for model in MODELS}


def _gains() -> Mapping[str, float]:
    values: dict[str, float] = {}
    for c in (16, 32):
        for arm in ("own1", "own2"):
            values[f"{arm}_{c}"] = speedup(c, arm, SPEED)
        for arm in ("full", "own1"):
            values[f"{arm}_experts_{c}"] = point(c, arm, SPEED)["metrics"]["distinct_experts"]["median"]
    return values


SENTENCES = (
    Sentence(
        PAGE,
        "decodes {own1_16:.1f} times as fast at 16 requests and {own1_32:.1f} times at 32, as a step reads"
        " {own1_experts_16:.0f} and {own1_experts_32:.0f} distinct experts instead of {full_experts_16:.0f} and"
        " {full_experts_32:.0f}. With two own experts it is {own2_16:.2f} and {own2_32:.2f}.",
        _gains,
    ),
    Sentence(
        PAGE,
        "one own expert costs {own1_2:.1f} % of bits per byte on mini-v2 and {own1_3:.1f} % on mini-v3, where plain"
        " `na` 1, which touches as many experts, costs {na1_2:.1f} and {na1_3:.0f} %, and `na` 2"
        " {na2_2:.1f} and {na2_3:.0f} %; two own experts cost {own2_2:.1f} and {own2_3:.1f} %.",
        lambda: _losses({"own1": "own 1", "na1": "na=1", "na2": "na=2", "own2": "own 2"}),
    ),
    Sentence(
        PAGE,
        "(16 a step: {own:.2f} against {plain:.2f} %)",
        lambda: {"own": _loss("mini_v2", 16, "own 2"), "plain": _loss("mini_v2", 16, "na=2")},
    ),
    Sentence(
        PAGE,
        "still more than two own experts do, {few:.1f} and {many:.1f} %.",
        lambda: {size: _loss("mini_v3", c, "own 2") for size, c in (("few", 16), ("many", 32))},
    ),
)
