"""docs/pruning.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docgen.figures.lookups import distilled, ends, guessed, loss, requests, schedule, speedup
from docgen.results import half, load
from docgen.sentences import Sentence
from docgen.tables.speed import PRUNED_SPEED

PAGE = "docs/pruning.md"
MODELS = ("mini_v2", "mini_v3")
STRUCTURED = ("odd", "even", "first_half", "last_half")


def _loss(model: str, criterion: str, kept: int) -> float:
    run = f"pruned_{model}" if kept == 32 else f"pruned_{model}_48_16"
    return loss(run, f"{criterion}-{kept}")


def _half_of_the_experts() -> Mapping[str, float]:
    """Percent of bits per byte; the tokens' share; and what the best plan without training loses."""
    fitted = ends(loss(f"pruned_{model}_heldout", "compensated-32") for model in MODELS)
    return {
        "loss": loss("pruned_mini_v2_heldout", "distilled-32"),
        **distilled(),
        "fitted_low": fitted["low"],
        "fitted_high": fitted["high"],
    }


def _cloze_intervals() -> Mapping[str, float]:
    """Half of an interval's width in percent of full's margin over guessing, of every plan with 48 and 16."""
    widths = []
    for model in MODELS:
        summary = load(f"pruned_{model}_48_16/summary.json")
        (chance,) = (task["chance_percent"] for task in summary["tasks"] if task["name"] == "cloze")
        rows = [row["tasks"]["cloze"] for row in summary["schedules"]]
        (margin,) = (row["value"] - chance for row in rows if row["change"] is None)
        widths += [100 * half(row["change"]["interval_95"]) / margin for row in rows if row["change"]]
    return ends(widths)


def _budget(model: str) -> Any:
    return schedule(f"pruned_{model}", "budget-32")["plan"]


def _spread() -> Mapping[str, float]:
    values = {f"{model}_{n}": kept for model in MODELS for n, kept in enumerate(_budget(model)["kept"])}
    losses = _budget("mini_v2")["method"]["sensitivity"]["layers"]
    return {**values, "first": losses["1"]["32"], "last": losses["5"]["32"]}


def _papers_order() -> Mapping[str, float]:
    structured = ends(_loss("mini_v3", name, 16) for name in STRUCTURED)
    return {**structured, **{name: _loss("mini_v3", name, 16) for name in ("random", "hard", "soft")}}


def _compensated() -> Mapping[str, float]:
    pairs = [
        (_loss(model, "compensated", kept), _loss(model, "contribution", kept))
        for model in MODELS
        for kept in (48, 32, 16)
    ]
    return ends(100 * (1 - fitted / dropped) for fitted, dropped in pairs)


SENTENCES = (
    Sentence(
        PAGE,
        "**Half of the experts cost {loss:.1f} % in bits per byte** after distilling on {low:.0f} to {high:.0f} % of"
        " the tokens that the models were trained on; without training the best is {fitted_low:.0f} to"
        " {fitted_high:.0f} %.",
        _half_of_the_experts,
    ),
    Sentence(
        PAGE,
        "that of the six benchmarks, {v2:word} (mini-v2) and {v3:word} (mini-v3) of which the models only guess.",
        lambda: {"v2": guessed("pruned_mini_v2"), "v3": guessed("pruned_mini_v3")},
    ),
    Sentence(
        PAGE,
        "the intervals are {low:.0f} to {high:.0f} % of the margin wide to each side.",
        _cloze_intervals,
    ),
    Sentence(
        PAGE,
        "On mini-v2 the spread is nearly even, {mini_v2_0}, {mini_v2_1}, {mini_v2_2}, {mini_v2_3} and {mini_v2_4}"
        " experts, though the last layer loses twice what the first one does ({last:.2f} against {first:.2f} nats); on"
        " mini-v3, whose groups must stay equal, {mini_v3_0}, {mini_v3_1}, {mini_v3_2}, {mini_v3_3} and {mini_v3_4}.",
        _spread,
    ),
    Sentence(
        PAGE,
        "{random:+.0f} % at random, {low:+.0f} to {high:+.0f} % structured, {hard:+.0f} and {soft:+.0f} % by counts.",
        _papers_order,
    ),
    Sentence(PAGE, "loses {low:.0f} to {high:.0f} % less, at every number of experts.", _compensated),
    Sentence(
        PAGE,
        "`hard` loses {lost:.0f} % of the gloss margin with 32.",
        lambda: {
            "lost": 100 * (1 - schedule("pruned_mini_v3", "hard-32")["tasks"]["gloss"]["margin_over_chance"]),
        },
    ),
    Sentence(PAGE, "{requests:,} requests, none failed", lambda: requests(PRUNED_SPEED)),
    Sentence(
        PAGE,
        "The gain at 32 is smaller ({gain:.2f} against 1.41)",
        lambda: {"gain": speedup(32, "32", PRUNED_SPEED)},
    ),
    Sentence(
        PAGE,
        "(2 MoE layers of 64 experts, {gib:.1f} GiB of experts, bf16)",
        lambda: {"gib": load("pruned_memory.json")["points"][0]["experts_mb"] / 1024},
    ),
    Sentence(
        PAGE,
        "(the largest has {mib:.0f} MiB)",
        lambda: {"mib": load("pruned_memory.json")["largest_file_mb"]},
    ),
)
