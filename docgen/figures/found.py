"""docs/open-questions.md, schedules for any model, and what README says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docgen.results import load
from docgen.sentences import Sentence

PAGE = "docs/open-questions.md"
BUDGETS = {"mini_v2": ("4", "3"), "mini_v3": ("5.2", "4")}
"""Of each model: two thirds and one half of its top-k, as the files name them."""


def _loss(model: str, budget: str, hint: Any) -> float:
    """Percent of bits per byte over the full model on the second halves."""
    rows = load(f"search_{model}/against-found-{budget}.json")["rows"]
    return float(next(row for row in rows if row["hint"] == hint)["loss_percent"]["value"])


def _losses() -> Mapping[str, float]:
    """Of what was found, and of the best uniform schedule as the router weighs it."""
    values: dict[str, float] = {}
    for model, budgets in BUDGETS.items():
        for part, budget in zip(("more", "less"), budgets, strict=True):
            search = load(f"search_{model}/search-{budget}.json")
            even = [one for one in search["compared"] if one["kind"] == "uniform" and one["rescale"] == "router"]
            values[f"{model}_{part}"] = _loss(model, budget, search["winner"]["hint"])
            values[f"{model}_{part}_even"] = min(_loss(model, budget, one["hint"]) for one in even)
    return values


def _minutes() -> Mapping[str, float]:
    seconds = [load(f"search_{model}/search-{one}.json")["seconds"] for model, ones in BUDGETS.items() for one in ones]
    return {"low": min(seconds) / 60, "high": max(seconds) / 60}


def _kept() -> Mapping[str, float]:
    """Percent by which what the engine kept under the found schedules is off the budget, at most."""
    pairs = [
        (load(f"search_{model}/kept.json")["mean_na"][f"found-{budget}"], float(budget))
        for model, budgets in BUDGETS.items()
        for budget in budgets
    ]
    return {"off": max(100 * abs(kept / budget - 1) for kept, budget in pairs)}


def _factor() -> Mapping[str, float]:
    return {"factor": load("search_mini_v2/search-4.json")["winner"]["hint"]["rescale"]}


SENTENCES = (
    Sentence(
        "README.md",
        "found loses {mini_v2_more:.2f} % (mini-v2) and {mini_v3_more:.2f} % (mini-v3) of bits per byte, where the same"
        " number everywhere loses {mini_v2_more_even:.2f} and {mini_v3_more_even:.2f} %, on text",
        _losses,
    ),
    Sentence(
        PAGE,
        "At two thirds it loses {mini_v2_more:.2f} % where uniform, as the router does it, loses"
        " {mini_v2_more_even:.2f} (mini-v2), and {mini_v3_more:.2f} where that loses {mini_v3_more_even:.2f} (mini-v3);"
        " at one half {mini_v2_less:.2f} of {mini_v2_less_even:.2f} and {mini_v3_less:.2f} of {mini_v3_less_even:.2f}.",
        _losses,
    ),
    Sentence(PAGE, "({factor:.1f} on the softmax router, which does not renormalise;", _factor),
    Sentence(PAGE, "schedules by weight kept within {off:.1f} % of the budget on the second halves.", _kept),
    Sentence(PAGE, "*Time*: {low:.1f} minutes on one core with little beside it", _minutes),
    Sentence(PAGE, "with the last stage), up to {high:.0f} beside much other work", _minutes),
)
