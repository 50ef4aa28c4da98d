"""docs/open-questions.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

from docgen.figures.lookups import ends, loss, schedule
from docgen.results import load, pick
from docgen.sentences import Sentence

PAGE = "docs/open-questions.md"
BUDGETS = {"mini_v3": (5, 4, 3, 2), "mini_v2": (4, 3, 2)}
"""Mean numbers of experts of the runs of skipping by weight."""
SAMPLES = tuple(range(5))
FULL_SURROGATE = "layer losses with interactions and a rest"
WITHOUT_ONE = ("layer losses with interactions", "layer losses and a rest")


def _searched() -> Any:
    return load("search_measured.json")


def _surrogate(name: str = FULL_SURROGATE) -> Any:
    return pick(_searched()["surrogates"], surrogate=name)


def _setup() -> Mapping[str, int]:
    found = _searched()
    return {"rows": found["rows"], "distinct": found["distinct_schedules"], "splits": found["splits"]}


def _unrestricted() -> Mapping[str, float]:
    found = _searched()["unrestricted"]
    best, layers = found["best_schedule"]["score"], found["best_layers"]["score"]
    return {
        "best": best["mean"],
        "low": best["min"],
        "high": best["max"],
        "layers": layers["mean"],
        "layers_low": layers["min"],
        "layers_high": layers["max"],
        "measured": found["best_of_measured_schedules"],
    }


def _choice() -> Mapping[str, float]:
    mean_na = _surrogate("parabola in mean na")["mean_absolute_error"]["mean"]
    return {"regret": _surrogate()["regret"]["max"], "splits": _searched()["splits"], "mean_na": mean_na}


def _parts() -> Mapping[str, float]:
    names = ("layer losses", *WITHOUT_ONE, FULL_SURROGATE)
    return {
        **ends(_surrogate(name)["mean_absolute_error"]["mean"] for name in names),
        "both": _surrogate()["regret"]["max"],
        "one": max(_surrogate(name)["regret"]["max"] for name in WITHOUT_ONE),
    }


def _sampling_error() -> Mapping[str, float]:
    """Binomial, in points, of the mean of six benchmarks of these sizes that are all at the best score of Table 10."""
    items = [task["items"] for task in load("six_benchmarks_mini_v2.json")["tasks"]]
    right = _searched()["unrestricted"]["best_of_measured_schedules"] / 100
    return {"error": 100 * sqrt(right * (1 - right) * sum(1 / number for number in items)) / len(items)}


def _coverage() -> Mapping[str, float]:
    coverage = _surrogate()["coverage"]
    return {"mean": 100 * coverage["mean"], "worst": 100 * coverage["min"]}


def _routers() -> Mapping[str, float]:
    values: dict[str, float] = {}
    for model in BUDGETS:
        layers = load(f"magnitude_{model}/weights.json")["full"]
        kinds = {
            "worth": ends(layer["effective"] for layer in layers),
            "first": ends(100 * layer["share_by_rank"][0] for layer in layers),
        }
        values |= {f"{model}_{kind}_{end}": value for kind, both in kinds.items() for end, value in both.items()}
    return values


def _factors() -> Mapping[str, float]:
    """Fitted on what mini-v3 keeps by rank, by layer; and by how much renormalising multiplies on average."""
    calibrated = load("magnitude_mini_v3/calibrated.json")
    four, two = (ends(calibrated[f"na{na}-fit"]["schedule"]["rescale"]) for na in (4, 2))
    layers = load("magnitude_mini_v3/weights.json")["full"]
    renormalised = [sum(1 / sum(layer["share_by_rank"][:na]) for layer in layers) / len(layers) for na in (4, 2)]
    return {
        "low": four["low"],
        "high": four["high"],
        "two_low": two["low"],
        "two_high": two["high"],
        "times": renormalised[0],
        "two_times": renormalised[1],
    }


def _met() -> Mapping[str, float]:
    """How far the realised mean is from the budget's, of all samples."""
    return {
        "off": max(
            abs(load(f"magnitude_{model}/calibrated.json")[f"weight{na}-s{sample}"]["realised_mean_na"] - na)
            for model, budgets in BUDGETS.items()
            for na in budgets
            for sample in SAMPLES
        )
    }


def _by_budget(of: Callable[[float, float, list[float]], list[float]], *models: str) -> list[float]:
    """Of each budget the losses by rank as the router does it, by rank fitted, and by weight in every sample."""
    found: list[float] = []
    for model in models:
        run = f"magnitude_{model}"
        for na in BUDGETS[model]:
            weighed = [loss(run, f"weight{na}-s{sample}") for sample in SAMPLES]
            found += of(loss(run, f"na{na}"), loss(run, f"na{na}-fit"), weighed)
    return found


def _less_than_rank() -> Mapping[str, float]:
    by_weight = ends(_by_budget(lambda rank, _, found: [100 * (1 - x / rank) for x in found], "mini_v3"))
    alone = ends(_by_budget(lambda rank, fitted, _: [100 * (1 - fitted / rank)], "mini_v3"))
    choice = ends(_by_budget(lambda _, fitted, found: [100 * (1 - x / fitted) for x in found], "mini_v3"))
    v2 = ends(_by_budget(lambda rank, _, found: [100 * (1 - x / rank) for x in found], "mini_v2"))
    named = {"alone": alone, "choice": choice, "v2": v2}
    return {**by_weight, **{f"{name}_{end}": value for name, both in named.items() for end, value in both.items()}}


def _glosses() -> Mapping[str, float]:
    def lost(label: str) -> float:
        return -float(schedule("magnitude_mini_v3", label)["tasks"]["gloss"]["change"]["value"])

    return {"rank": lost("na2"), "fitted": lost("na2-fit"), **ends(lost(f"weight2-s{sample}") for sample in SAMPLES)}


def _ramp() -> Mapping[str, float | int]:
    ratios = [stage["ratio"] for stage in load("auto_ramp.json")["stages"]]
    worst, second, *_ = sorted(ratio["median"] for ratio in ratios)
    low = min(ratio["quartiles"][0] for ratio in ratios)
    return {"rounds": len(ratios[0]["all"]), "worst": worst, "next": second, "low": low}


SENTENCES = (
    Sentence(
        PAGE,
        "The paper's Table 10 ({rows} schedules of DeepSeek-V2-Lite, {distinct} of them distinct), fitted on a random"
        " half, {splits} times.",
        _setup,
    ),
    Sentence(
        PAGE,
        "the error of the first line is {error:.3f}.",
        lambda: {"error": _surrogate()["unseen_error"]["mean"]},
    ),
    Sentence(
        PAGE,
        "instead of the best prediction has a regret of {mean:.2f} (worst {max:.2f})",
        lambda: _surrogate()["regret_by_score"],
    ),
    Sentence(
        PAGE,
        "the best (b, h, e, p) of each half comes to {best:.2f} on average ({low:.2f} to {high:.2f}), the best table"
        " per layer to {layers:.2f} ({layers_low:.2f} to {layers_high:.2f}); the best measured schedule to"
        " {measured:.2f}.",
        _unrestricted,
    ),
    Sentence(
        PAGE,
        "Half of the table predicts the other half to {error:.2f} points",
        lambda: {"error": _surrogate()["mean_absolute_error"]["mean"]},
    ),
    Sentence(PAGE, "less than the sampling error of one score ({error:.1f}: binomial,", _sampling_error),
    Sentence(
        PAGE,
        "what it chooses is within {regret:.2f} of the best in all {splits} splits. What matters is to count experts"
        " layer by layer: mean na alone errs by {mean_na:.2f}.",
        _choice,
    ),
    Sentence(
        PAGE,
        "earn little there ({low:.3f} to {high:.3f}). Only with both was the choice never more than {both:.2f} short;"
        " without one of them single splits chose a schedule {one:.2f} short",
        _parts,
    ),
    Sentence(
        PAGE,
        "Repeats of one schedule differ by {deviation:.2f} (standard deviation)",
        lambda: {"deviation": _searched()["repeat_deviation"]},
    ),
    Sentence(
        PAGE,
        "Its intervals hold {mean:.0f} % of the scores on average, but {worst:.0f} % in the worst split.",
        _coverage,
    ),
    Sentence(PAGE, "of the same {rows} rows;", _setup),
    Sentence(
        PAGE,
        "loses {four:.1f} % of bits per byte at 4 of 8 and {two:.0f} % at 2, mini-v2 (softmax) {v2_four:.1f} and"
        " {v2_two:.1f} % at 4 and 2 of 6.",
        lambda: {
            "four": loss("magnitude_mini_v3", "na4"),
            "two": loss("magnitude_mini_v3", "na2"),
            "v2_four": loss("magnitude_mini_v2", "na4"),
            "v2_two": loss("magnitude_mini_v2", "na2"),
        },
    ),
    Sentence(
        PAGE,
        "weights are worth {mini_v3_worth_low:.1f} to {mini_v3_worth_high:.1f} of 8 experts on mini-v3, with"
        " {mini_v3_first_low:.0f} to {mini_v3_first_high:.0f} % on the largest, and {mini_v2_worth_low:.1f} to"
        " {mini_v2_worth_high:.1f} of 6 on mini-v2, with {mini_v2_first_low:.0f} to {mini_v2_first_high:.0f} %.",
        _routers,
    ),
    Sentence(
        PAGE,
        "nearest to the full layer is {low:.2f} to {high:.2f} at 4 of 8 and {two_low:.2f} to {two_high:.2f} at 2, where"
        " renormalising multiplies by {times:.1f} and {two_times:.1f} on average",
        _factors,
    ),
    Sentence(PAGE, "corrected to the mean na through the engine (within {off:.3f} of it", _met),
    Sentence(
        PAGE,
        "On mini-v3 it is {low:.0f} to {high:.0f} % less than rank as the router does it: weights left alone take off"
        " {alone_low:.0f} to {alone_high:.0f} %, and the choice by weight {choice_low:.0f} to {choice_high:.0f} % of"
        " what is left. On mini-v2 it is {v2_low:.0f} to {v2_high:.0f} % less, all of it by the choice.",
        _less_than_rank,
    ),
    Sentence(
        PAGE,
        "fitted factors do not help ({low:+.2f} to {high:+.2f} points with rank)",
        lambda: ends(_by_budget(lambda rank, fitted, _: [fitted - rank], "mini_v2")),
    ),
    Sentence(
        PAGE,
        "over the five the loss in bits per byte varies by {low:.2f} to {high:.2f} points.",
        lambda: ends(_by_budget(lambda _, __, found: [max(found) - min(found)], *BUDGETS)),
    ),
    Sentence(
        PAGE,
        "of 120 glosses rank as the router does it loses {rank:.1f} points, rank with fitted factors {fitted:.1f}, by"
        " weight {low:.1f} to {high:.1f}.",
        _glosses,
    ),
    Sentence(
        PAGE,
        "In the median of {rounds:word} ramps auto has {worst:.2f} of the best fixed profile's rate at the worst stage,"
        " the first, and at least {next:.2f} at all others; quartiles reach down to {low:.2f}.",
        _ramp,
    ),
)
