"""docs/predict.md."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from docgen.figures.lookups import ends, explained
from docgen.results import load, pick
from docgen.sentences import Sentence
from docgen.tables.speed import CAPPED, PRUNED_SPEED, SHARED

PAGE = "docs/predict.md"


def _table8() -> Any:
    return load("perfmodel_validation.json")["sources"]["table8"]


def _many_requests() -> Mapping[str, float]:
    points = _table8()["points"]
    two = [point for point in points if point["label"] == "na2" and point["concurrency"] >= 384]
    measured, predicted = ([point[f"{kind}_speedup"] for point in two] for kind in ("measured", "predicted"))
    six = pick(points, label="na6", concurrency=384)
    return {
        "low": min(measured),
        "high": max(measured),
        "predicted_low": min(predicted),
        "predicted_high": max(predicted),
        "short": -100 * six["tok_s_error"],
    }


def _pruned() -> Mapping[str, float]:
    found = _table8()["half_of_the_experts"]
    off = {c: 100 * abs(found[c]["predicted"] / found[c]["published"] - 1) for c in ("12", "256")}
    return {"at_12": off["12"], "at_256": off["256"], "published": found["256"]["published"]}


def _beside_consolidation() -> Mapping[str, float]:
    """Percent by which speed-ups of plain skipping and rates of all curves are off in consolidation's load tests."""
    points = [point for file in (SHARED, CAPPED) for point in load(file)["explanation"]["points"]]
    plain = [point for point in points if point["arm"] == "plain2"]
    rates = [100 * abs(point["predicted_tok_s"] / point["measured_tok_s"] - 1) for point in points]
    return {
        **ends(100 * (1 - point["predicted_speedup"] / point["measured_speedup"]) for point in plain),
        "median": median(rates),
        "most": max(rates),
    }


SENTENCES = (
    Sentence(
        PAGE,
        "Errors of the speed-ups at {points:.0f} concurrencies:",
        lambda: {"points": _table8()["errors"]["na2"]["points"]},
    ),
    Sentence(
        PAGE,
        "at c = 8, {share:.0f} % of the step is in neither bytes nor operations",
        lambda: {"share": 100 * explained(8, file=PRUNED_SPEED)["shares"]["unexplained"]},
    ),
    Sentence(
        PAGE,
        "na = 2 gains {low:.2f} to {high:.2f}, predicted {predicted_low:.2f} to {predicted_high:.2f}. Tok/s of na = 6"
        " at 384 is {short:.0f} % too low.",
        _many_requests,
    ),
    Sentence(
        PAGE,
        "is off by {at_12:.0f} and {at_256:.0f} %: at 256 the paper finds almost nothing ({published:.2f})",
        _pruned,
    ),
    Sentence(
        PAGE,
        "is predicted {low:.0f} to {high:.0f} % too low. Here, too, tok/s do not carry over: they are off by"
        " {median:.1f} % in the median and {most:.0f} % at most.",
        _beside_consolidation,
    ),
)
